"""What a speed job found, in words: who wins, and which term loses. Imports no torch.

    speed-up = accepted length / break-even,   break-even = (verify + draft + rest) / vanilla pass

up to the prompt's pass, which is part of every answer and cannot be made faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

VANILLA, LOOKUP, ASSISTANT = "vanilla", "lookup", "assistant"
LABELS: Mapping[str, str] = MappingProxyType(
    {VANILLA: "Vanilla", LOOKUP: "Prompt lookup", ASSISTANT: "Small assistant"}
)
COMBINED = "+lookup"  # behind the name of a drafter that guesses where lookup finds nothing
MARGIN = 0.03  # a speed-up nearer to 1 than this is none
QUIET = 0.25  # more than so much between rounds of the same work is not the decoder's doing
TASK = "speed_up/"
MOVING = "choosing and moving rows"


class Row(Protocol):
    """What is read of a row of `results`."""

    @property
    def stage(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def n(self) -> int | None: ...
    @property
    def details(self) -> dict[str, Any]: ...


@dataclass
class DecoderReport:
    """One decoder's figures, as they were recorded.

    Attributes:
        kind: Amphista, Medusa, …; empty for those that are not trained.
        ranges: metric -> (lowest, highest) over rounds.
        lengths: accepted length -> passes; milliseconds: part of a pass -> mean.
        hits: path of a node of its tree -> share of passes that found it right.
        tasks: task -> (speed-up, mean accepted length).
    """

    name: str
    kind: str = ""
    nodes: int = 1
    speed: float = 0.0
    speed_up: float = 1.0
    accepted: float = 1.0
    break_even: float = 1.0
    same: float = 1.0
    prompts: int = 0
    first_difference: int | None = None
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    hits: dict[tuple[int, ...], float] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How people call it: "Amphista (amphista-0007)"."""
        return f"{self.title} ({self.run})" if self.kind else LABELS.get(self.name, self.name)

    @property
    def title(self) -> str:
        """What it is, without its run: "Lookup, Amphista"."""
        return f"Lookup, {self.kind}" if self.combined else self.kind

    @property
    def run(self) -> str:
        """The run that trained its drafter."""
        return self.name.removesuffix(COMBINED)

    @property
    def combined(self) -> bool:
        """Whether its drafter guesses only where lookup finds nothing."""
        return self.name.endswith(COMBINED)


def path_name(path: tuple[int, ...]) -> str:
    """A node of a tree by the ranks of its guesses, from 0: "0.2"."""
    return ".".join(map(str, path))


def path_named(name: str) -> tuple[int, ...]:
    """The node `path_name` named."""
    return tuple(map(int, name.split(".")))


def decoder_reports(results: Iterable[Row]) -> list[DecoderReport]:
    """The arms of a speed job, vanilla first, then the fastest."""
    found: dict[str, DecoderReport] = {}
    for row in results:
        if row.stage != "run":
            _read(found.setdefault(row.stage, DecoderReport(row.stage)), row)
    return sorted(found.values(), key=lambda arm: (arm.name != VANILLA, -arm.speed_up))


def _read(arm: DecoderReport, row: Row) -> None:
    """Puts one figure in its place."""
    more = row.details
    if "lowest" in more:
        arm.ranges[row.metric] = (more["lowest"], more["highest"])
    match row.metric:
        case "tokens_per_second":
            arm.speed = row.value
        case "speed_up":
            arm.speed_up, arm.nodes, arm.kind = row.value, more["nodes"], more["arm"]
        case "accepted_length":
            arm.accepted = row.value
            arm.lengths = {int(length): count for length, count in more["lengths"].items()}
            hits = more.get("hits", {})
            arm.hits = {path_named(name): share for name, share in hits.items()}
        case "break_even":
            arm.break_even, arm.milliseconds = row.value, more["milliseconds"]
        case "same_text":
            arm.same, arm.prompts = row.value, row.n or 0
            arm.first_difference = more["first_difference"]
        case metric if metric.startswith(TASK):
            arm.tasks[metric.removeprefix(TASK)] = (row.value, more["accepted"])


def verdicts(results: Iterable[Row]) -> list[str]:
    """The verdict on every arm but vanilla; empty where nothing was compared."""
    arms = decoder_reports(results)
    if len(arms) < 2:
        return []
    vanilla = arms[0]
    said = [f"{arm.label} {_speed(arm)} {_why(arm, vanilla)}{_texts(arm)}" for arm in arms[1:]]
    return [*said, *_unquiet(vanilla)]


def _unquiet(vanilla: DecoderReport) -> list[str]:
    """Warns where the machine did not do the same work in the same time."""
    low, high = vanilla.ranges.get("tokens_per_second", (vanilla.speed, vanilla.speed))
    if high <= (1 + QUIET) * low:
        return []
    return [
        f"Something else used this machine: vanilla wrote {low:.0f} to {high:.0f} tokens/s from "
        "round to round. The figures may not agree with each other; measure again when it is quiet."
    ]


def _speed(arm: DecoderReport) -> str:
    low, high = arm.ranges.get("speed_up", (arm.speed_up, arm.speed_up))
    if low <= 1 + MARGIN and high >= 1 - MARGIN and abs(arm.speed_up - 1) < MARGIN:
        return f"is as fast as vanilla here ({arm.speed_up:.2f}×)."
    word = "faster" if arm.speed_up > 1 else "slower"
    return f"is {word} than vanilla here: {arm.speed_up:.2f}× ({low:.2f} to {high:.2f})."


def _why(arm: DecoderReport, vanilla: DecoderReport) -> str:
    """Accepted against break-even, and where the time of a pass goes."""
    whole = sum(vanilla.milliseconds.values()) or 1.0
    cost = {part: value / whole for part, value in arm.milliseconds.items()}
    verify = cost.get("verify", 1.0)
    extra = {
        f"verifying up to {arm.nodes} tokens at once": verify - 1,
        "drafting": cost.get("draft", 0.0),
        MOVING: cost.get("accept", 0.0) + cost.get("cache", 0.0),
    }
    dearest = max(extra, key=extra.__getitem__)
    text = (
        f"A pass yields {arm.accepted:.2f} tokens and takes {arm.break_even:.2f} times a vanilla "
        f"one: verifying {verify:.2f}, drafting {extra['drafting']:.2f}, {MOVING} "
        f"{extra[MOVING]:.2f}."
    )
    if arm.speed_up >= 1 + MARGIN:
        return text
    if arm.accepted <= 1.0 + MARGIN:
        return f"{text} Hardly a guess is right."
    return f"{text} What it loses most by is {dearest}."


def _texts(arm: DecoderReport) -> str:
    if arm.same == 1:
        return f" All {arm.prompts} texts are vanilla's."
    same = round(arm.same * arm.prompts)
    return (
        f" {same} of {arm.prompts} texts are vanilla's to the last token; the first difference is "
        f"at token {(arm.first_difference or 0) + 1}."
    )
