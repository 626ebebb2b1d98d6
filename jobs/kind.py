"""What a kind of job is, and which kinds there are.

A kind is one file: a pydantic config and `run(config, context)`. The config is at once form,
command line, API, validation and stored record. Importing this module imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from backend.errors import ConfigError
from backend.settings import settings

if TYPE_CHECKING:
    from jobs.runtime.context import JobContext


class JobConfig(BaseModel):
    """What every job may be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        title="Seed",
        description="Same seed, threads and config give the same result.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=256,
        title="CPU threads",
        description="0 uses all that are available.",
        json_schema_extra={"advanced": True},
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        title="Device",
        description="auto, cpu, cuda or cuda:0. auto takes a GPU when there is one.",
        json_schema_extra={"advanced": True},
    )


@dataclass(frozen=True)
class Estimate:
    """What a run will cost, told before it is queued.

    Attributes:
        seconds: expected duration; None when nothing is known.
        bytes: expected peak memory.
        work: floating-point operations, the basis of `seconds`.
        basis: in words, where the figures come from.
        warnings: things worth knowing that do not forbid the run.
        open_ended: whether a part of the work is not in `seconds`, because nobody can tell.
    """

    seconds: float | None
    bytes: int
    work: float
    basis: str
    warnings: tuple[str, ...] = ()
    open_ended: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Attributes:
        presets: name -> field values that differ from the defaults.
        stages: stage name -> label, in order.
        verdict: stage -> perplexity, to a sentence on whether the method helped on this model.
        told: values of a config, to what tells its run from others first; the rest is drawn from
            the fields but those of `told_of`.
        of_models: whether its stages are whole models, with a perplexity, a size and a speed each.
        check: refuses a config that cannot work (SlimscopeError with `field`), without torch.
    """

    name: str
    title: str
    summary: str
    config: type[JobConfig]
    check: Callable[[Any], Estimate]
    run: Callable[[Any, JobContext], None]
    stages: Mapping[str, str] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    verdict: Callable[[Mapping[str, float]], str] = lambda _: ""
    told: Callable[[Mapping[str, Any]], list[str]] | None = None
    told_of: frozenset[str] = frozenset()
    of_models: bool = True

    def preset(self, name: str) -> Mapping[str, Any]:
        """The field values of a preset; none for the empty name.

        Raises:
            ConfigRefused: there is no preset of that name.
        """
        if name and name not in self.presets:
            known = ", ".join(self.presets) or "none"
            raise ConfigError(f"There is no preset {name[:40]!r}.", "", f"There are: {known}.")
        return self.presets.get(name, {})

    MODULES: ClassVar[tuple[str, ...]] = (
        "jobs.sds.run",
        "jobs.dlqat.run",
        "jobs.amphista.run",
        "jobs.speed.run",
        "jobs.generate.run",
        "jobs.evaluation.run",
        "jobs.weight_statistics.run",
    )


@lru_cache
def kinds() -> dict[str, Kind]:
    """All kinds by name: our own, then those of `SLIMSCOPE_PLUGINS` (modules with KINDS)."""
    found: dict[str, Kind] = {}
    for module in (*Kind.MODULES, *settings().plugins):
        for kind in getattr(importlib.import_module(module), "KINDS", ()):
            found[kind.name] = kind
    return found


def kind_named(name: str) -> Kind:
    """The kind of that name.

    Raises:
        ConfigRefused: there is none.
    """
    if name not in kinds():
        raise ConfigError(
            f"There is no kind of run called {name[:40]!r}.", "", f"Choose: {', '.join(kinds())}."
        )
    return kinds()[name]
