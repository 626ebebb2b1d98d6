"""What the Speed page reads: one benchmark, and what is known of its drafters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from backend.store import frames, queries
from backend.store.tables import Job
from jobs.fields.drafters import DRAFTER_FOLDER, expected_hits
from jobs.metrics import PARAMETERS
from jobs.speed import config as speed
from jobs.speed.report import DecoderReport, decoder_reports, verdicts
from ui.runs.results import display_units, find_job

Path = tuple[int, ...]


@dataclass(frozen=True)
class DrafterInfo:
    """What is known of a drafter from the run that trained it.

    Attributes:
        hits: path of a draft token -> share of held-out anchors at which it was right.
        parameters, steps: of its training; None where the run is gone.
    """

    hits: Mapping[Path, float] = field(default_factory=dict)
    parameters: float | None = None
    steps: float | None = None

    def expected(self, decoder: DecoderReport) -> float | None:
        """Tokens per step of the decoder's tree on held-out answers."""
        known = self.hits and decoder.hits  # those behind prompt lookup are not recorded
        return 1 + sum(self.hits.get(path, 0.0) for path in decoder.hits) if known else None


@dataclass(frozen=True)
class Benchmark:
    """One speed run: vanilla first, then the fastest decoders."""

    job: Job
    decoders: Sequence[DecoderReport]
    verdicts: Sequence[str]

    @property
    def complete(self) -> bool:
        """Whether every decoder has been timed on all prompts."""
        return bool(self.decoders) and all(d.prompts for d in self.decoders)

    @property
    def trees(self) -> list[DecoderReport]:
        """Decoders whose draft tokens were counted."""
        return [d for d in self.decoders if d.hits] if self.complete else []

    def drafters(self) -> dict[str, DrafterInfo]:
        """Decoder -> its drafter, of those that have a trained one."""
        return {d.name: drafter_of(d.run) for d in self.decoders if d.kind}


def benchmark(runs: Sequence[Job], name: str) -> Benchmark | None:
    """The benchmark of that name, or the newest without a name; None where there is none."""
    chosen = find_job(name) if name else next(iter(runs), None)
    if chosen is None or chosen.kind != speed.NAME:
        return None
    reports = decoder_reports(chosen.run)
    return Benchmark(chosen, reports, verdicts(reports))


def drafter_of(run: str) -> DrafterInfo:
    """The facts of the run's drafter."""
    rows = {row.metric: row.value for row in queries.results([run]) if row.stage == DRAFTER_FOLDER}
    return DrafterInfo(expected_hits(run), rows.get(PARAMETERS), rows.get("steps"))


def head_curves(run: str) -> pd.DataFrame:
    """Top-1 accuracy of each head during training, %: columns name ("Head 1"), step, value."""
    curves = display_units(frames.shown_curves(run))
    tops = curves[curves["name"].str.startswith("top1/")]
    names = tops["name"].str.removeprefix("top1/").str.capitalize()
    return tops.assign(name=names)
