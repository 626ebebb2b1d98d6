"""Budgets of models that have a sensitivity profile: which formats, which layers are held, and the
mix. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from backend.budget import Budget, budget_of
from backend.errors import ConfigError
from backend.models.layer_names import check_layer_patterns, fits
from backend.pruning.pattern import Pattern
from backend.quantization.widths import Width
from backend.sensitivity.budget import BudgetSolver, Mix
from backend.sensitivity.profile import SensitivityProfile
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
    return BudgetSolver(profile, 2.0 * (facts.parameters - facts.linear_weights), formats)


def method_of(budget: Budget, usual: Method) -> Method:
    """The formats a budget is of; `usual` where it could be either."""
    if budget.kind == "loss":
        return usual
    return "pruned" if budget.kind == "sparsity" else "quantized"


def require_method(budget: Budget, method: Method) -> None:
    """Refuse budgets that say nothing about a method's formats. Raises ConfigError."""
    if method_of(budget, method) == method:
        return
    if method == "pruned":
        what, why = f"A budget of {budget} is not for pruning.", "Pruned weights are stored dense."
        raise ConfigError(what, why, "Give a sparsity: budget:50%.", field="allocation")
    what, why = f"A budget of {budget} is not for quantization.", "It prunes nothing."
    raise ConfigError(what, why, "Give bits or a size: budget:3.25bits.", field="allocation")


def pins(profile: SensitivityProfile, text: str, field: str) -> dict[str, str]:
    """Full name of a layer -> format it is held at; the last match counts.

    Args:
        text: "mlp.down_proj=int4-g64, 0.*=dense"

    Raises:
        ConfigError: a name matches no layer, or what it is held at is no format of the profile.
    """
    held: dict[str, str] = {}
    known = {"dense", *map(str, profile.formats)}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, form = (side.strip() for side in part.partition("="))
        check_layer_patterns([name], profile.layers, field)
        if form not in known:
            what, why = f"{form[:40]!r} is not in {profile.run}.", "A budget needs its loss."
            raise ConfigError(what, why, f"Choose {', '.join(sorted(known))}.", field=field)
        held |= {layer.name: form for layer in profile.layers if fits(name, layer)}
    return held


def pruned_mix(config: Allocated, overrides: str) -> Mapping[str, Pattern]:
    """Full name -> pattern of the layers that a config's budget prunes; empty without a budget.

    Raises:
        ConfigError: the budget cannot be kept, or is none for pruning.
        NotFoundError: the model has no profile.
    """
    budget = budget_of(config.allocation)
    if budget is None:
        return {}
    require_method(budget, "pruned")
    mix = _mix(config, overrides, budget, "pruned")
    return {name: form.pattern for name, form in mix.formats.items() if form.pattern}


def quantized_mix(config: Allocated, overrides: str) -> Mapping[str, Width]:
    """Full name -> width of the layers that a config's budget quantizes; empty without a budget.

    Raises:
        ConfigError: the budget cannot be kept, or is none for quantization.
        NotFoundError: the model has no profile.
    """
    budget = budget_of(config.allocation)
    if budget is None:
        return {}
    require_method(budget, "quantized")
    mix = _mix(config, overrides, budget, "quantized")
    return {name: form.width for name, form in mix.formats.items() if form.width}


def _mix(config: Allocated, overrides: str, budget: Budget, method: Method) -> Mix:
    profile = newest_profile(config.model)
    held = dict.fromkeys(filter(None, map(str.strip, config.exclude.split(","))), "dense")
    text = ", ".join([*(f"{name}={form}" for name, form in held.items()), overrides])
    return solver_of(profile, method).solve(budget, pins(profile, text, "overrides"))
