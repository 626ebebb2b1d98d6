"""Budgets of models that have a sensitivity profile: which formats, which layers are held, and the
mix. Does not import torch."""

from collections.abc import Mapping
from typing import Literal, Protocol

from backend.budget import Budget, BudgetKind, budget_of, is_mixed
from backend.errors import ConfigError
from backend.models.layer_names import check_layer_patterns, fits, read_assignments, read_names
from backend.pruning.pattern import Pattern
from backend.quantization.widths import Width
from backend.sensitivity.budget import BudgetSolver
from backend.sensitivity.formats import Format
from backend.sensitivity.profile import SensitivityProfile
from backend.store import queries
from jobs.fields.base_model import resolve_model
from jobs.profile.profiles import newest_profile

Method = Literal["quantized", "pruned"]
KINDS: Mapping[Method, str] = {"quantized": "dlqat", "pruned": "sds"}  # of run that takes its mixes


class Allocated(Protocol):
    """The config of a run whose formats a budget may allocate."""

    @property
    def model(self) -> str: ...

    @property
    def allocation(self) -> str: ...

    @property
    def exclude(self) -> str: ...


def solver_of(profile: SensitivityProfile, method: Method) -> BudgetSolver:
    """The mixes of a method's formats. Raises ConfigError: the profile has none of them."""
    pruned = method == "pruned"
    formats = frozenset(
        x for x in profile.formats if x.quantized != pruned and bool(x.pattern) == pruned
    )
    if not formats:
        what = f"{profile.run} has no {method} formats."
        raise ConfigError(what, "", "Profile the model in some.", field="allocation")
    facts = resolve_model(profile.model, reads=False).facts
    rest = facts.parameters - sum(x.weights for x in profile.layers)
    return BudgetSolver(profile, 2.0 * rest, formats)


def method_of(budget: Budget, usual: Method) -> Method:
    """The formats a budget is of; `usual` where it could be either."""
    if budget.kind in ("loss", "ms"):
        return usual
    return "pruned" if budget.kind == "sparsity" else "quantized"


def pins(profile: SensitivityProfile, text: str, field: str) -> dict[str, str]:
    """Full name of a layer -> format it is held at; the last match counts. `text`:
    such as "mlp.down_proj=int4-g64, 0.*=dense". Raises ConfigError: a name matches no layer, or
    what it is held at is no format of the profile."""
    held: dict[str, str] = {}
    known = {str(Format()), *map(str, profile.formats)}
    try:
        read = read_assignments(text, str, "format", "mlp.down_proj=int4-g64")
    except ValueError as error:
        raise ConfigError(f"{error}", "", "Correct it.", field=field) from error
    for name, form in read:
        check_layer_patterns([name], profile.layers, field)
        if form not in known:
            what, why = f"{form[:40]!r} is not in {profile.run}.", "A budget needs its loss."
            raise ConfigError(what, why, f"Choose {', '.join(sorted(known))}.", field=field)
        held |= {layer.name: form for layer in profile.layers if fits(name, layer)}
    return held


def pruned_mix(config: Allocated, overrides: str) -> Mapping[str, Pattern]:
    """Full name -> pattern of the layers that a config's allocation prunes; empty where it is no
    mix. Raises ConfigError: the budget cannot be kept, or is none for pruning; NotFoundError: the
    model has no profile, or there is no such search."""
    formats = _mix(config, overrides, "pruned", ("sparsity", "loss", "ms"), "budget:50%")
    return {name: form.pattern for name, form in formats.items() if form.pattern}


def quantized_mix(config: Allocated, overrides: str, embedding: str) -> Mapping[str, Width]:
    """Full name -> width of the layers that a config's allocation quantizes, and of embedding and
    head; errors as above. `embedding`: the format they are held at; empty: the budget is for them,
    too."""
    formats = _mix(
        config, overrides, "quantized", ("size", "bits", "loss", "ms"), "budget:3.25bits", embedding
    )
    return {name: form.width for name, form in formats.items() if form.width}


def _mix(
    config: Allocated,
    overrides: str,
    method: Method,
    kinds: tuple[BudgetKind, ...],
    example: str,
    embedding: str = "",
) -> Mapping[str, Format]:
    if not is_mixed(config.allocation):
        return {}
    budget = budget_of(config.allocation)
    if budget is None:
        return _found(config, method)
    if budget.kind not in kinds:
        what = f"A budget of {budget} is not for a method by which layers are {method}."
        raise ConfigError(what, "", f"Write it as in {example}.", field="allocation")
    profile = newest_profile(config.model)
    held = (f"{name}={Format()}" for name in read_names(config.exclude))
    held_at = pins(profile, ", ".join([*held, overrides]), "overrides")
    if embedding:
        held_at |= {x.name: embedding for x in profile.layers if x.block < 0}
    return solver_of(profile, method).solve(budget, held_at).formats


def _found(config: Allocated, method: Method) -> Mapping[str, Format]:
    """The mix that a search has found."""
    job = queries.job(config.allocation)
    stored = job.environment.get("mix")
    if not isinstance(stored, dict) or not stored:
        what = f"{job.run} has found no mix yet."
        raise ConfigError(what, f"It is {job.state}.", "Wait for its end.", field="allocation")
    if job.config.get("model") != config.model:
        what, why = f"{job.run} is of another model.", f"It searched {job.config.get('model')}."
        raise ConfigError(what, why, "Choose that model, or another search.", field="allocation")
    try:
        formats = {str(name): Format.parse(str(form)) for name, form in stored.items()}
    except ValueError as error:
        what = f"The mix of {job.run} cannot be read."
        raise ConfigError(what, f"{error}", "Search again.", field="allocation") from error
    pruned = any(form.pattern for form in formats.values())
    if pruned != (method == "pruned"):
        what = f"{job.run} is not for a method by which layers are {method}."
        raise ConfigError(what, "", "Choose another search.", field="allocation")
    return formats
