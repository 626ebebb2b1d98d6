"""What a benchmark measured of each decoder, and the verdict in words: which component limits the
speed-up.

    speed-up = accepted length / break-even,   break-even = (verify + draft + rest) / vanilla step

up to the prefill, which is part of every response and not sped up.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, TypeAdapter

from backend.metric_key import MetricKey
from backend.store import queries
from jobs.metrics import SPEED_UP, TOKENS_PER_SECOND
from jobs.wording import extent, times

VANILLA, LOOKUP, PYTORCH = "vanilla", "lookup", "pytorch"
LABELS: Mapping[str, str] = MappingProxyType(
    {VANILLA: "Vanilla", PYTORCH: "PyTorch loop", LOOKUP: "Prompt lookup"}
)
LLAMA_CPP = "llama.cpp "  # prefix of its decoders, before the type of their weights
COMBINED = "+lookup"  # suffix of a drafter that is the fallback of prompt lookup
MIN_GAIN = 0.03  # a speed-up nearer to 1 than this counts as none
MAX_NOISE = 0.25  # spread between rounds of the same work, beyond which the machine was busy
ACCEPTANCE = "acceptance and cache"


def speed_up_of(task: str) -> MetricKey:
    """The speed-up over the prompts of a task; over all of them without one."""
    return replace(SPEED_UP, series=task)


def decoder_label(name: str) -> str:
    """A decoder for people, by its name alone: "Prompt lookup + amphista-0007"."""
    if name.endswith(COMBINED):
        return f"{LABELS[LOOKUP]} + {name.removesuffix(COMBINED)}"
    return LABELS.get(name, name)


def _path(name: str | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, name.split("."))) if isinstance(name, str) else name


@dataclass
class DecoderReport:
    """Measurements of one decoder.

    Attributes:
        kind: Amphista, Medusa, …; empty for those that are not trained.
        same: share of the prompts whose response is vanilla's.
        ranges: name of a metric -> (lowest, highest) over rounds.
        lengths: accepted length -> steps; milliseconds: part of a step -> mean.
        hits: path of a node of its tree -> share of steps that accepted it.
        tasks: task -> (speed-up, mean accepted length).
        nodes: of its tree at most, the root included; tree: the tree in words.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
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
    hits: dict[Annotated[tuple[int, ...], BeforeValidator(_path)], float] = field(
        default_factory=dict
    )
    milliseconds: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, tuple[float, float]] = field(default_factory=dict)
    tree: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON data: paths of the tree become text, the ranks of their tokens, from 0: "0.2"."""
        hits = {".".join(map(str, path)): share for path, share in self.hits.items()}
        return asdict(self) | {"hits": hits}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "DecoderReport":
        """The report that `record` made. Raises ValueError, TypeError: it is none."""
        return REPORT.validate_json(json.dumps(record), strict=True)

    def speed_up_range(self, task: str = "") -> tuple[float, float]:
        """Lowest and highest speed-up over the rounds, of all prompts or those of a task."""
        value = self.tasks[task][0] if task else self.speed_up
        return self.ranges.get(str(speed_up_of(task)), (value, value))

    @property
    def faster(self) -> bool:
        """Whether it is faster than vanilla in every round, by more than counts as none."""
        return self.speed_up_range()[0] > 1 and self.speed_up >= 1 + MIN_GAIN

    @property
    def untimed(self) -> dict[str, Any]:
        """What no clock measured, so that a reproduction has to repeat it."""
        record = self.record()
        return {name: record[name] for name in ("lengths", "hits", "first_difference")}

    @property
    def label(self) -> str:
        """The name for people: "Amphista (amphista-0007)"."""
        return f"{self.title} ({self.run})" if self.kind else decoder_label(self.name)

    @property
    def title(self) -> str:
        """What it is, without its run: "Prompt lookup + Amphista"."""
        return f"Prompt lookup + {self.kind}" if self.combined else self.kind

    @property
    def drafts(self) -> bool:
        """Whether it drafts tokens, rather than decoding one a pass."""
        return self.name != VANILLA and not self.peer

    @property
    def peer(self) -> bool:
        """Whether it is another implementation of vanilla decoding, which stands beside ours."""
        return self.name == PYTORCH or self.name.startswith(LLAMA_CPP)

    @property
    def run(self) -> str:
        return self.name.removesuffix(COMBINED)

    @property
    def combined(self) -> bool:
        """Whether its drafter is the fallback of prompt lookup."""
        return self.name.endswith(COMBINED)


REPORT = TypeAdapter(DecoderReport)


def decoder_reports(run: str | int) -> list[DecoderReport]:
    """The decoders of a benchmark, vanilla first, then the fastest; a damaged row is none."""
    reports: list[DecoderReport] = []
    for row in queries.decoder_rows(run):
        with suppress(TypeError, ValueError):
            reports.append(DecoderReport.from_record(row.report))
    return sorted(reports, key=lambda report: (report.name != VANILLA, -report.speed_up))


def verdicts(reports: Sequence[DecoderReport]) -> list[str]:
    """Verdicts on every decoder but vanilla, which comes first; none where it is alone."""
    if len(reports) < 2:
        return []
    vanilla, *others = reports
    sentences = [
        f"{report.label} {_speed(report)} {_bottleneck(report, vanilla)}{_texts(report)}"
        for report in others
    ]
    low, high = vanilla.ranges.get(str(TOKENS_PER_SECOND), (vanilla.speed, vanilla.speed))
    if high > (1 + MAX_NOISE) * low:  # the same work took different times
        sentences.append(
            f"The machine was busy: vanilla decoding varied from {low:.0f} to {high:.0f} tokens/s "
            "between rounds. The figures may be inconsistent; repeat the run on an idle machine."
        )
    return sentences


def _speed(report: DecoderReport) -> str:
    low, high = report.speed_up_range()
    spread = extent((low, high), "{:.2f}".format)
    if low <= 1 <= high or abs(report.speed_up - 1) < MIN_GAIN:
        return f"does not differ measurably from vanilla here: {times(report.speed_up)} ({spread})."
    word = "faster" if report.speed_up > 1 else "slower"
    return f"is {word} than vanilla here: {times(report.speed_up)} ({spread})."


def _bottleneck(report: DecoderReport, vanilla: DecoderReport) -> str:
    """Accepted length against break-even, and the component that costs most."""
    if report.peer:
        return f"A pass takes {report.break_even:.2f} times as long as in vanilla decoding."
    whole = sum(vanilla.milliseconds.values()) or 1.0
    cost = {part: value / whole for part, value in report.milliseconds.items()}
    verify = cost.get("verify", 1.0)
    extra = {
        f"verification of up to {report.nodes} tokens at once": verify - 1,
        "drafting": cost.get("draft", 0.0),
        ACCEPTANCE: cost.get("accept", 0.0) + cost.get("cache", 0.0),
    }
    largest = max(extra, key=extra.__getitem__)
    draft = f"{extra['drafting']:.2f} to draft, " if report.kind else ""
    text = (
        f"A step yields {report.accepted:.2f} tokens and costs {report.break_even:.2f} plain steps "
        f"({verify:.2f} to verify, {draft}{extra[ACCEPTANCE]:.2f} for the rest)."
    )
    if report.speed_up >= 1 + MIN_GAIN:
        return text
    if report.accepted <= 1.0 + MIN_GAIN:
        return f"{text} Almost no draft token is accepted."
    return f"{text} The largest extra cost is {largest}."


def _texts(report: DecoderReport) -> str:
    if report.same == 1:
        return f" All {report.prompts} responses match vanilla's."
    same = round(report.same * report.prompts)
    return (
        f" {same} of {report.prompts} responses match vanilla's token for token; the first "
        f"difference is at token {(report.first_difference or 0) + 1}."
    )
