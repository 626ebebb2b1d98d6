"""A search for a mix of formats as a kind of job."""

from jobs.comparison import StageComparison
from jobs.kind import Kind, StageStyle
from jobs.search.config import DENSE, FOUND, LABELS, NAME, SOLVER, SearchJob
from jobs.search.estimate import requirements


def verdict(stages: StageComparison) -> str:
    """In words, whether the search gained anything on text it has not seen."""
    if not {SOLVER, FOUND} <= stages.perplexity.keys():
        return ""
    return f"The mix found {stages.clause(FOUND, {SOLVER: 'the mix of the solver'})}."


KIND = Kind(
    name=NAME,
    title="Format search",
    summary="Refines the solver's mix of formats for a budget by trying others.",
    config=SearchJob,
    requirements=requirements,
    run="jobs.search.run:run",
    order=56,
    main_fields=("budget", "minutes"),
    stages=LABELS,
    styles={DENSE: StageStyle("grey", main=True), SOLVER: StageStyle("vermillion"),
            FOUND: StageStyle("blue", main=True)},
    default_stage=FOUND,
    has_models=False,
    verdict=verdict,
    presets={"quick look": {"context": 256, "segments": 16, "minutes": 2, "windows": 8},
             "default": {}, "thorough": {"segments": 32, "minutes": 30}},
)  # fmt: skip
