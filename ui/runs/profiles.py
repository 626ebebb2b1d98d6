"""Sensitivity profiles of runs: best mixes of formats, and finished runs for comparison with the
predictions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.budget import BudgetKind
from backend.errors import SlimscopeError
from backend.live.address import INSTANT_METHODS, LiveState, address_of, queued_state, state_at
from backend.models.families.stored import LinearShape
from backend.pruning.plan import PruningPlan
from backend.quantization import DECLARED_QUANTIZERS
from backend.quantization.config import IntegerFormat
from backend.quantization.plan import EMBEDDING_GROUP, QuantizationPlan
from backend.sensitivity.budget import BudgetSolver, Mix
from backend.sensitivity.profile import Format, SensitivityProfile
from backend.store import queries
from backend.store.states import ACTIVE, State
from jobs.kind import kinds
from jobs.metrics import BITS_PER_WEIGHT, PERPLEXITY, ZERO_SHARE
from jobs.profile.profiles import Method, budget_solver, read_profile
from ui.runs.results import setting_summary
from ui.runs.rows import RunRow, all_rows
from ui.runs.weights import layer_label
from ui.widgets.explorer import cached_by

# the budget by which each method's mixes are ordered
METHOD_BUDGETS: Mapping[Method, BudgetKind] = {"quantized": "size", "pruned": "sparsity"}
FRONT_POINTS = 160  # mixes of one front
MIXED_SHARE = 0.02  # deviation of the zeros of a run from its pattern that tells a mix
MAX_RUNS = 100  # newest runs of a model in a chart


@cached_by(queries.profiles_mark)
def profile_at(run: str) -> SensitivityProfile | None:
    """The profile a run has measured so far; None without a profile, or if its model is missing."""
    try:
        return read_profile(run)
    except SlimscopeError:
        return None


def heldout_text(record: Mapping[str, Any]) -> tuple[int, int]:
    """Windows of a profile's text and tokens of each; 0 if unknown."""
    texts = record.get("text")
    return text_size(texts.get("held-out") if isinstance(texts, dict) else None)


def text_size(facts: Any) -> tuple[int, int]:
    """Windows and tokens of each from the recorded facts of a text; 0 if unknown."""
    match facts:
        case {"windows": int(windows), "context": int(context)}:
            return windows, context
    return 0, 0


def first_to_break(run: str) -> str:
    """The layer with the highest loss in the first measured format; empty without a profile."""
    profile = profile_at(run)
    inside = [at for at, x in enumerate(profile.layers) if x.block >= 0] if profile else []
    if profile is None or not inside:
        return ""
    column = int(np.isfinite(profile.figure("kl")[inside]).any(0).argmax())
    losses = np.nan_to_num(profile.predicted[inside, column], posinf=0.0)
    layer = profile.layers[inside[int(losses.argmax())]]
    return layer_label(layer.block, layer.module)


@dataclass(frozen=True)
class MixFront:
    """Best mixes of one method's formats.

    Attributes:
        solver: the solver of the profile and method.
        mixes: best mixes by kind of budget, the smallest budget first.
    """

    solver: BudgetSolver
    mixes: Mapping[BudgetKind, list[Mix]]


@cached_by(queries.profiles_mark)
def fronts_of(run: str) -> dict[Method, MixFront]:
    """The fronts of the methods whose formats a run has profiled, by method."""
    profile, fronts = profile_at(run), dict[Method, MixFront]()
    if profile is None:
        return fronts
    for method, budget in METHOD_BUDGETS.items():
        try:
            solver = budget_solver(profile, method)
        except SlimscopeError:
            continue
        kinds: tuple[BudgetKind, ...] = (budget, "ms") if profile.times else (budget,)
        mixes = {kind: solver.front(FRONT_POINTS, kind) for kind in kinds}
        fronts[method] = MixFront(solver, mixes)
    return fronts


def state_runs(
    model: str, layers: Sequence[LinearShape], other_bytes: float
) -> Iterator[dict[str, Any]]:
    """Runs that give the layers of a model their formats, newest first: finished ones, active ones,
    and those that were queued from a live model.

    `state` is the address of the formats; `pruner` and `quantizer` made them, empty for any;
    `nbytes` is their size, computed like that of a mix; `final`, `predicted` and `live` are
    perplexities relative to the dense model.

    Args:
        layers: layers of the model, embedding and head included.
        other_bytes: bytes of all tensors other than `layers`.
    """
    rows = {row.head.run: row for row in all_rows()}
    chains = [_chain(row, rows) for row in rows.values()]
    chains = [x for x in chains if x and x[0].head.config.get("model") == model][:MAX_RUNS]
    plans = queries.plans({row.head.id for chain in chains for row in chain})
    for chain in chains:
        row, job = chain[-1], chain[-1].job
        queued, final = queued_state(job.environment or {}), _over_dense(chain)
        if not queued and final is None and job.state not in ACTIVE:
            continue
        with suppress(SlimscopeError, ValueError):  # of another version of the model, or damaged
            made = state_at(queued.state, layers) if queued else _made_state(chain, plans, layers)
            if not queued and final is not None and not _is_as_planned(row, made, layers):
                continue
            formats = [*made.formats.values()]
            methods = [getattr(made, knob) or name for knob, name in INSTANT_METHODS.items()]
            sizes = (f.nbytes(x.rows, x.columns) for f, x in zip(formats, layers, strict=True))
            measured = row.figures.final_row(PERPLEXITY)
            yield {
                "run": job.run,
                "label": " · ".join(setting_summary(job)) or job.name,
                "at": job.shown_state,
                "state": queued.state if queued else address_of(formats, *methods),
                "pruner": made.pruner,
                "quantizer": made.quantizer,
                "nbytes": other_bytes + sum(sizes),
                "final": final,
                "stage": row.figures.label(row.figures.kept) if row.figures.kept else "",
                "text": text_size(measured and measured.details),
                "queued": queued is not None,
                "predicted": queued and queued.predicted,
                "live": queued and queued.live,
            }


def _chain(row: RunRow | None, rows: Mapping[str, RunRow]) -> list[RunRow]:
    """The runs from the original model to this one; empty for a run without a plan."""
    chain: list[RunRow] = []
    while row and row not in chain and row.head.kind in kinds() and kinds()[row.head.kind].plan:
        chain.insert(0, row)
        row = rows.get(str(row.head.config.get("model")))
    return chain


def _made_state(
    chain: Sequence[RunRow], plans: Mapping[int, Any], layers: Sequence[LinearShape]
) -> LiveState:
    """The formats after a chain of runs, and their methods. Raises `ValidationError` for a plan
    that is missing or damaged."""
    formats, pruner, quantizer = dict[str, Format](), "", ""
    for row in chain:
        plan_type = kinds()[row.head.kind].plan
        assert plan_type is not None
        plan = plan_type.model_validate(plans.get(row.head.id))
        parsed = {text: Format.parse(text) for text in {*plan.formats.values()}}
        made = {name: parsed[text] for name, text in plan.formats.items()}
        if isinstance(plan, PruningPlan):
            pruner = plan.groups[0].pruner
        if isinstance(plan, QuantizationPlan):
            kept = row.job.kept_stage or ""
            quantizer = kept if kept in DECLARED_QUANTIZERS else ""
            before = formats if all(group.keep_zeros for group in plan.groups) else {}
            made = {n: Format(f.width, before.get(n, f).pattern) for n, f in made.items()}
            if x := plan.embedding:  # offered in the groups that profiles measure
                width = IntegerFormat(x.bits, x.group_size and EMBEDDING_GROUP)
                made |= dict.fromkeys(x.layers, Format(width))
        formats |= made
    return LiveState({x.name: formats.get(x.name, Format()) for x in layers}, pruner, quantizer)


def _is_as_planned(row: RunRow, made: LiveState, layers: Sequence[LinearShape]) -> bool:
    """Return True if the kept stage has the formats, as a stage without zeros or bits does not."""
    zeros, bits = row.figures.final(ZERO_SHARE), row.figures.final(BITS_PER_WEIGHT)
    inside = [(made.formats[x.name], x.weights) for x in layers if x.block >= 0]
    expected = sum(f.sparsity * n for f, n in inside) / sum(n for _, n in inside)
    has_zeros = zeros is None or abs(zeros - expected) <= MIXED_SHARE
    return has_zeros and (bits is not None or not any(f.width for f, _ in inside))


def perplexity_over_dense(run: str) -> float | None:
    """Perplexity of a run's kept stage relative to the dense model; None if unknown."""
    rows = {row.head.run: row for row in all_rows()}
    return _over_dense(_chain(rows.get(run), rows))


def _over_dense(chain: Sequence[RunRow]) -> float | None:
    """The perplexity after a chain of runs. Each measured its change relative to the model of the
    run before, so the changes are multiplied."""
    ended = [row.figures.change() for row in chain if row.head.state == State.SUCCEEDED]
    known = [change for change in ended if change is not None]
    return math.prod(1 + x for x in known) if chain and len(known) == len(chain) else None
