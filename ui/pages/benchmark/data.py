"""What the Speed page reads: one benchmark, and what is known of its drafters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from backend.store import queries
from backend.store.tables import Job
from jobs.benchmark.kind import NAME
from jobs.benchmark.report import DecoderReport, decoder_reports, verdicts
from jobs.fields.drafters import DRAFTER_FOLDER, expected_hits
from jobs.metrics import PARAMETERS, PREDICTED_LENGTH, STEPS
from ui.runs.results import find_job

Path = tuple[int, ...]


@dataclass(frozen=True)
class DrafterInfo:
    """Facts of a drafter from the run that trained it: `hits` (path of a draft token -> its
    contribution to the accepted length on held-out answers), and `predicted` accepted length with
    the default trees."""

    hits: Mapping[Path, float] = field(default_factory=dict)
    predicted: float | None = None
    parameters: float | None = None
    steps: float | None = None

    def expected(self, decoder: DecoderReport, default: bool) -> float | None:
        """Tokens per step on held-out answers; `default`: with trees that follow confidence."""
        if decoder.combined:
            return None  # what prompt lookup finds in other prompts is not known
        if default:
            return self.predicted
        known = self.hits and decoder.hits
        return 1 + sum(self.hits.get(path, 0.0) for path in decoder.hits) if known else None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: vanilla first, then the fastest decoders."""

    job: Job
    decoders: Sequence[DecoderReport]
    verdicts: Sequence[str]

    @property
    def complete(self) -> bool:
        return bool(self.decoders) and all(d.prompts for d in self.decoders)

    @property
    def trees(self) -> list[DecoderReport]:
        return [d for d in self.decoders if len(d.hits) > 1] if self.complete else []

    def tree(self, wanted: str) -> DecoderReport | None:
        """Decoder whose tree is drawn: the wanted one, or the first."""
        return next((d for d in self.trees if d.name == wanted), next(iter(self.trees), None))

    @cached_property
    def drafters(self) -> dict[str, DrafterInfo]:
        return {d.name: drafter_of(d.run) for d in self.decoders if d.kind}


def benchmark(runs: Sequence[Job], name: str) -> Benchmark | None:
    """The benchmark of that name, or the newest without a name; None where there is none."""
    chosen = find_job(name) if name else next(iter(runs), None)
    if chosen is None or chosen.kind != NAME:
        return None
    reports = decoder_reports(chosen.run)
    return Benchmark(chosen, reports, verdicts(reports))


def drafter_of(run: str) -> DrafterInfo:
    results = queries.results([run])
    rows = {row.metric: row.value for row in results if row.stage == DRAFTER_FOLDER}
    figures = (rows.get(key) for key in (PREDICTED_LENGTH, PARAMETERS, STEPS))
    return DrafterInfo(expected_hits(run), *figures)
