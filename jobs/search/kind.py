"""A search for a mix of formats as a kind of job."""

from typing import Any

from pydantic import field_validator

from backend.budget import Budget
from backend.errors import ConfigError, for_field
from backend.models.facts import ModelFacts
from backend.models.memory import memory_parts
from backend.options import option
from backend.sensitivity.budget import BudgetSolver, Mix
from jobs.estimates import PhaseWork
from jobs.fields.models import resolve_model
from jobs.fields.text import TextConfig, check_text, context_length
from jobs.fields.types import ModelConfig
from jobs.kind import DiskSpace, JobConfig, Kind, Requirements, StageStyle
from jobs.profile.kind import candidate_products
from jobs.profile.profiles import Method, newest_profile, profile_of_run, solver_of
from jobs.wording import StageComparison

NAME = "search"
DENSE, SOLVER, FOUND = "dense", "solver", "search"
LABELS = {DENSE: "Dense", SOLVER: "Solver's mix", FOUND: "Mix found"}


class SearchJob(ModelConfig, TextConfig, JobConfig):
    """Which model, its budget, and how long to search."""

    budget: str = option("3.25bits", "Budget", max_length=60, examples=["3.25bits", "80MB", "50%"])
    """80MB (of the file), 3.25bits (a weight, scales included), 50% (zeros) or 6.5ms (a token)."""
    minutes: float = option(5.0, "Search time", gt=0, le=1440, unit="minutes")
    """After the candidates are made."""
    offspring: int = option(8, "Offspring", ge=2, le=256, advanced=True)
    """Mixes tried in each generation."""

    @field_validator("budget")
    @classmethod
    def _budget_read(cls, text: str) -> str:
        return str(Budget.parse(text))


def requirements(config: SearchJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model).facts
    facts.require_compressible()
    warnings = check_text(config, facts)
    if not config.heldout_windows:
        what, why = "Nothing is held out.", "Mixes are selected on held-out windows."
        raise ConfigError(what, why, "Choose a share above 0.", field="holdout")
    solver, _ = solved(config)
    copies = (len(solver.formats) + 1) * 2 * facts.linear_weights
    return Requirements(
        title=facts.title,
        work=work(config, solver, facts),
        memory=memory_bytes(config, facts),
        disk=DiskSpace(copies, "Every layer in every format", "Profile fewer formats.", "budget"),
        warnings=warnings,
    )


def solved(config: SearchJob, run: str = "") -> tuple[BudgetSolver, Mix]:
    """The solver of a profile, and its mix for the budget. Raises ConfigError: beside the field,
    why the budget cannot be kept or searched. `run`: that measured it; empty: the newest."""
    budget = Budget.parse(config.budget)
    if budget.kind == "loss":
        what, why = (
            "A search needs a budget of bytes, zeros or time.",
            "Mixes of equal cost are compared.",
        )
        raise ConfigError(what, why, "Give bits, a size, a sparsity or ms.", field="budget")
    method: Method = "pruned" if budget.kind == "sparsity" else "quantized"
    with for_field("budget", ConfigError):
        profile = profile_of_run(run) if run else newest_profile(config.model)
        solver = solver_of(profile, method)
        return solver, solver.solve(budget)


def work(config: SearchJob, solver: BudgetSolver, facts: ModelFacts) -> list[PhaseWork]:
    """See `Requirements.work`."""
    context = context_length(config, facts)
    read = (facts.linear_weights + facts.vocabulary * facts.hidden) * config.windows * context
    made = candidate_products(facts, len(solver.formats), config.segments * context)
    return [
        PhaseWork("dense", read),
        PhaseWork("candidates", made),
        PhaseWork("search", 60 * config.minutes, "seconds", "search"),
        PhaseWork("measure", 2.0 * read),
    ]


def memory_bytes(config: SearchJob, facts: ModelFacts) -> dict[str, int]:
    """Purpose -> bytes at the peak."""
    sizes: dict[str, Any] = {
        "dtype": "float32",
        "segments": config.segments + config.heldout_windows,
        "context": context_length(config, facts),
        "batch": 4,
        "streams": 1,
        "stages": 2,
        "on_disk": False,
    }
    windows = config.heldout_windows * context_length(config, facts)
    reference = {"dense distributions": 2 * windows * facts.vocabulary}
    return memory_parts(facts, streamed=False, **sizes) | reference


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
    styles={
        DENSE: StageStyle("grey", main=True),
        SOLVER: StageStyle("vermillion"),
        FOUND: StageStyle("blue", main=True),
    },
    default_stage=FOUND,
    has_models=False,
    verdict=verdict,
    presets={
        "quick look": {"context": 256, "segments": 16, "minutes": 2, "windows": 8},
        "default": {},
        "thorough": {"segments": 32, "minutes": 30},
    },
)
