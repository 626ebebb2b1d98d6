"""Which of the processes of a run a process is, and what loading needs of any of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Rank:
    """The place of a process among those that train together. `number`: from 0, which is the
    process of the attempt; world: how many there are. `rendezvous`: the file by which they meet, on
    their machine."""

    number: int
    world: int
    rendezvous: Path


@dataclass(frozen=True)
class FollowerTask:
    """What a process that follows the first one is told, as JSON.

    Attributes:
        config: of the run; model: its model, as a folder or a name that needs no database.
        work: folder of its checkpoints; attempt: its number.
        rendezvous, number, world: see `Rank`.
        plan: what the run does to each layer, where its kind has plans.
    """

    kind: str
    config: dict[str, Any]
    model: str
    work: str
    attempt: int
    rendezvous: str
    number: int
    world: int
    plan: dict[str, Any] = field(default_factory=dict)


class RunContext(Protocol):
    """What loading a model needs of a run, in its first process or in another. `rank`: None where
    the run has one process."""

    rank: Rank | None

    def log(self, text: str) -> None:
        """Write one line to the log of the run."""

    def environment(self, **facts: Any) -> None:
        """Add facts that are needed to repeat the run."""
