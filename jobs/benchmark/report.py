"""Measurements of each decoder in a benchmark, and a verdict in words on what limits the speed-up.

    speed-up = accepted length / break-even,   break-even = (verify + draft + rest) / vanilla step

without the prefill, which is part of every response and is not accelerated.
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
LLAMA_CPP = "llama.cpp "  # prefix of llama.cpp decoders, followed by the GGUF type
COMBINED = "+lookup"  # suffix of a drafter that is the fallback of prompt lookup
MIN_GAIN = 0.03  # speed-ups closer to 1 count as no speed-up
MAX_NOISE = 0.25  # a larger spread between rounds of the same work means a busy machine
ACCEPTANCE = "acceptance and cache"


def speed_up_of(task: str) -> MetricKey:
    """Return the key of the speed-up on the prompts of a task, or on all prompts if empty."""
    return replace(SPEED_UP, series=task)


def decoder_label(name: str) -> str:
    """Return the label of a decoder, such as "Prompt lookup + amphista-0007"."""
    if name.endswith(COMBINED):
        return f"{LABELS[LOOKUP]} + {name.removesuffix(COMBINED)}"
    return LABELS.get(name, name)


def _path(name: str | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, name.split("."))) if isinstance(name, str) else name


@dataclass
class DecoderReport:
    """Measurements of one decoder.

    Attributes:
        name: name of the decoder, unique within the benchmark.
        kind: architecture of the drafter (Amphista, Medusa, …); empty without one.
        nodes: maximum number of nodes in the draft tree, including the root.
        speed: tokens per second.
        speed_up: speed relative to vanilla decoding.
        accepted: mean accepted length in tokens per pass.
        break_even: accepted length at which the decoder is as fast as vanilla.
        same: share of prompts with the same response as vanilla.
        prompts: number of prompts.
        first_difference: position of the first token that differs from vanilla's, from 0.
        ranges: metric name -> (lowest, highest) over rounds.
        lengths: accepted length -> number of steps.
        hits: path of a tree node -> share of steps that accepted it.
        milliseconds: part of a step -> mean time.
        tasks: task -> (speed-up, mean accepted length).
        tree: description of the draft tree.
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
        """Return JSON data. A tree path becomes the ranks of its tokens, from 0, such as "0.2"."""
        hits = {".".join(map(str, path)): share for path, share in self.hits.items()}
        return asdict(self) | {"hits": hits}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "DecoderReport":
        """Restore a report from `record`. Raises `ValueError` or `TypeError` for invalid data."""
        return REPORT.validate_json(json.dumps(record), strict=True)

    def speed_up_range(self, task: str = "") -> tuple[float, float]:
        """Return the lowest and highest speed-up over the rounds, for a task or all prompts."""
        value = self.tasks[task][0] if task else self.speed_up
        return self.ranges.get(str(speed_up_of(task)), (value, value))

    @property
    def faster(self) -> bool:
        """True if the decoder is measurably faster than vanilla in every round."""
        return self.speed_up_range()[0] > 1 and self.speed_up >= 1 + MIN_GAIN

    @property
    def untimed(self) -> dict[str, Any]:
        """Figures that do not depend on time, which a reproduction has to repeat exactly."""
        record = self.record()
        return {name: record[name] for name in ("lengths", "hits", "first_difference")}

    @property
    def label(self) -> str:
        """Label of the decoder, such as "Amphista (amphista-0007)"."""
        return f"{self.title} ({self.run})" if self.kind else decoder_label(self.name)

    @property
    def title(self) -> str:
        """Architecture without the name of the run, such as "Prompt lookup + Amphista"."""
        return f"Prompt lookup + {self.kind}" if self.combined else self.kind

    @property
    def drafts(self) -> bool:
        """True if the decoder drafts tokens instead of decoding one per pass."""
        return self.name != VANILLA and not self.peer

    @property
    def peer(self) -> bool:
        """True for another implementation of vanilla decoding: PyTorch or llama.cpp."""
        return self.name == PYTORCH or self.name.startswith(LLAMA_CPP)

    @property
    def run(self) -> str:
        """Name of the run that trained the drafter."""
        return self.name.removesuffix(COMBINED)

    @property
    def combined(self) -> bool:
        """True if the drafter is the fallback of prompt lookup."""
        return self.name.endswith(COMBINED)


REPORT = TypeAdapter(DecoderReport)


def decoder_reports(run: str | int) -> list[DecoderReport]:
    """Load the decoder reports of a benchmark: vanilla first, then by speed. Damaged rows are
    skipped."""
    reports: list[DecoderReport] = []
    for row in queries.decoder_rows(run):
        with suppress(TypeError, ValueError):
            reports.append(DecoderReport.from_record(row.report))
    return sorted(reports, key=lambda report: (report.name != VANILLA, -report.speed_up))


def verdicts(reports: Sequence[DecoderReport]) -> list[str]:
    """Return a verdict on every decoder except vanilla, the first report."""
    if len(reports) < 2:
        return []
    vanilla, *other_reports = reports
    sentences = [
        f"{report.label} {_speed(report)} {_bottleneck(report, vanilla)}{_texts(report)}"
        for report in other_reports
    ]
    low, high = vanilla.ranges.get(str(TOKENS_PER_SECOND), (vanilla.speed, vanilla.speed))
    if high > (1 + MAX_NOISE) * low:  # the same work took different times
        sentences.append(
            f"The machine was busy: vanilla decoding varied from {low:.0f} to {high:.0f} tokens/s "
            "between rounds. Repeat the run on an idle machine for consistent figures."
        )
    return sentences


def _speed(report: DecoderReport) -> str:
    low, high = report.speed_up_range()
    interval = extent((low, high), "{:.2f}".format)
    if low <= 1 <= high or abs(report.speed_up - 1) < MIN_GAIN:
        return (
            f"does not differ measurably from vanilla here: {times(report.speed_up)} ({interval})."
        )
    word = "faster" if report.speed_up > 1 else "slower"
    return f"is {word} than vanilla here: {times(report.speed_up)} ({interval})."


def _bottleneck(report: DecoderReport, vanilla: DecoderReport) -> str:
    """Compare accepted length and break-even, and name the most expensive component."""
    if report.peer:
        return f"A pass takes {report.break_even:.2f} times as long as in vanilla decoding."
    vanilla_ms = sum(vanilla.milliseconds.values()) or 1.0
    cost = {part: value / vanilla_ms for part, value in report.milliseconds.items()}
    verify = cost.get("verify", 1.0)
    extra = {
        f"verification of up to {report.nodes} tokens at once": verify - 1,
        "drafting": cost.get("draft", 0.0),
        ACCEPTANCE: cost.get("accept", 0.0) + cost.get("cache", 0.0),
    }
    largest = max(extra, key=extra.__getitem__)
    draft = f"{extra['drafting']:.2f} to draft, " if report.kind else ""
    text = (
        f"{report.accepted:.2f} tokens per step at {report.break_even:.2f} × the cost of a vanilla "
        f"step ({verify:.2f} to verify, {draft}{extra[ACCEPTANCE]:.2f} other)."
    )
    if report.speed_up >= 1 + MIN_GAIN:
        return text
    if report.accepted <= 1.0 + MIN_GAIN:
        return f"{text} Almost no draft tokens are accepted."
    return f"{text} The largest extra cost is {largest}."


def _texts(report: DecoderReport) -> str:
    if report.same == 1:
        return f" All {report.prompts} responses match vanilla's."
    same = round(report.same * report.prompts)
    return (
        f" {same} of {report.prompts} responses match vanilla's token for token; the first "
        f"difference is at token {(report.first_difference or 0) + 1}."
    )
