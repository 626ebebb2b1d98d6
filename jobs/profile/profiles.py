"""Stored sensitivity profiles, and the mix of formats for a budget that follows from them.

Does not import torch."""

from collections.abc import Mapping
from typing import Literal, Protocol

from backend.budget import Budget, BudgetKind, budget_of
from backend.errors import ConfigError, NotFoundError
from backend.files import fingerprint
from backend.models.layer_names import check_layer_patterns, fits, read_assignments, read_names
from backend.models.sources.catalog import local_folder
from backend.models.sources.headers import weight_files
from backend.pruning.pattern import Pattern
from backend.quantization.config import IntegerFormat
from backend.sensitivity.budget import BudgetSolver
from backend.sensitivity.profile import Format, SensitivityProfile, profile_of
from backend.statistics.tensors import SENSITIVITY
from backend.store import queries
from backend.store.json_column import check_intact
from backend.store.states import State
from backend.store.tensors import named_profiles
from jobs.fields.models import ResolvedModel, resolve_model
from jobs.profile.kind import NAME, ProfileJob
from jobs.submit import validate_config

# keys in the environment of a profile
WEIGHTS_MARK, DECODING_TIMES, ESTIMATE = "weights_mark", "decoding_times", "estimate"
CALIBRATION_TOKENS, WIDEST_INPUT = "calibration_tokens", "widest_input"
Method = Literal["quantized", "pruned"]
KINDS: Mapping[Method, str] = {"quantized": "dlqat", "pruned": "sds"}  # kinds that use the mixes


def read_profile(run: str) -> SensitivityProfile:
    """Load the profile of a run, with the layers measured so far.

    Raises:
        NotFoundError: the run does not exist.
        ConfigError: the run is not a profile, or has not measured a layer yet.
    """
    job = queries.job(run)
    if job.kind != NAME:
        raise ConfigError(
            f"{job.run} is not a sensitivity profile.",
            f"It is a run of the kind {job.kind}.",
            "Choose another run.",
        )
    check_intact(job.config)
    config = validate_config(NAME, job.config)
    assert isinstance(config, ProfileJob)
    facts = resolve_model(config.model, reads=False).facts
    layers = (*facts.linears, *facts.embeddings)
    values = {
        p.tensor.removesuffix(".weight"): p.values for p in named_profiles(job.id, SENSITIVITY)
    }
    record = job.environment or {}
    times, estimate = record.get(DECODING_TIMES), record.get(ESTIMATE)
    profile = profile_of(job.run, config.model, layers, config.all_formats, values, times, estimate)
    if not profile.layers:
        raise ConfigError(
            f"{job.run} has measured no layer yet.",
            f"Its state is {job.state}.",
            "Wait for its first block.",
        )
    return profile


def weights_fingerprint(base: ResolvedModel) -> str:
    """Return the fingerprint of a model's weights; empty if they are not on this machine."""
    folder = local_folder(base.source)
    return fingerprint(weight_files(folder)) if folder else ""


def newest_profile(model: str) -> SensitivityProfile:
    """Load the newest finished profile of a model. Raises `NotFoundError` if there is none,
    `ConfigError` if the weights of the model have changed since."""
    for job in queries.jobs([State.SUCCEEDED], NAME, 500):
        if job.config.get("model") == model:
            profiled = job.environment.get(WEIGHTS_MARK)
            if profiled and weights_fingerprint(resolve_model(model, reads=False)) not in (
                "",
                profiled,
            ):
                raise ConfigError(
                    f"{model[:80]} has changed.",
                    f"{job.run} measured other weights.",
                    f"Profile it again: slimscope submit profile --model {model[:80]}",
                    field="model",
                )
            return read_profile(job.run)
    raise NotFoundError(
        f"There is no sensitivity profile of {model[:80]}.",
        "A budget needs one.",
        f"Run: slimscope submit profile --model {model[:80]}",
    )


class Allocated(Protocol):
    """A config with a budget that allocates formats to layers."""

    @property
    def model(self) -> str: ...

    @property
    def allocation(self) -> str: ...

    @property
    def exclude(self) -> str: ...


def budget_solver(profile: SensitivityProfile, method: Method) -> BudgetSolver:
    """Return a solver for mixes of the formats of a method. Raises `ConfigError` if the profile has
    none of them."""
    pruned = method == "pruned"
    formats = frozenset(
        x for x in profile.formats if x.quantized != pruned and bool(x.pattern) == pruned
    )
    if not formats:
        raise ConfigError(
            f"{profile.run} has no {method} formats.",
            "",
            f"Profile the model with {method} formats.",
            field="allocation",
        )
    parameters = resolve_model(profile.model, reads=False).facts.parameters
    other_parameters = parameters - sum(x.weights for x in profile.layers)
    return BudgetSolver(profile, 2.0 * other_parameters, formats)


def budget_method(budget: Budget, default: Method) -> Method:
    """Return the method of a budget; `default` if it suits both."""
    if budget.kind in ("loss", "ms"):
        return default
    return "pruned" if budget.kind == "sparsity" else "quantized"


def pins(profile: SensitivityProfile, text: str, field: str) -> dict[str, str]:
    """Parse layers with a fixed format, such as "mlp.down_proj=int4-g64, 0.*=dense".

    Returns a map from full layer names to formats; the last match wins. Raises `ConfigError` if a
    name matches no layer or the profile does not have the format.
    """
    pinned: dict[str, str] = {}
    formats = {str(Format()), *map(str, profile.formats)}
    try:
        assignments = read_assignments(text, str, "format", "mlp.down_proj=int4-g64")
    except ValueError as error:
        raise ConfigError(f"{error}", "", "Correct the list.", field=field) from error
    for name, format in assignments:
        check_layer_patterns([name], profile.layers, field)
        if format not in formats:
            raise ConfigError(
                f"{format[:40]!r} is not in {profile.run}.",
                "A budget needs the loss of each format.",
                f"Choose {', '.join(sorted(formats))}.",
                field=field,
            )
        pinned |= {layer.name: format for layer in profile.layers if fits(name, layer)}
    return pinned


def pruned_mix(config: Allocated, overrides: str) -> Mapping[str, Pattern]:
    """Return the pattern of each pruned layer, by full name; empty if the allocation is not a
    budget.

    Raises:
        ConfigError: the budget cannot be met, or is not suited for pruning.
        NotFoundError: the model has no profile.
    """
    formats = _mix(config, overrides, "pruned", ("sparsity", "loss", "ms"), "budget:50%")
    return {name: form.pattern for name, form in formats.items() if form.pattern}


def quantized_mix(config: Allocated, overrides: str, embedding: str) -> Mapping[str, IntegerFormat]:
    """Return the width of each quantized layer, by full name, including embedding and head. Raises
    the errors of `pruned_mix`. `embedding` is the fixed format of embedding and head; empty if the
    budget includes them."""
    formats = _mix(
        config, overrides, "quantized", ("size", "bits", "loss", "ms"), "budget:3.25bits", embedding
    )
    return {name: form.width for name, form in formats.items() if form.width}


def replaced_fields(allocation: str, *fields: str) -> dict[str, str]:
    """Return a warning for each of the fields that a budget replaces; empty without a budget."""
    if budget_of(allocation) is None:
        return {}
    return dict.fromkeys(fields, f"Not used: {allocation} sets the format of each layer.")


def _mix(
    config: Allocated,
    overrides: str,
    method: Method,
    kinds: tuple[BudgetKind, ...],
    example: str,
    embedding: str = "",
) -> Mapping[str, Format]:
    budget = budget_of(config.allocation)
    if budget is None:
        return {}
    if budget.kind not in kinds:
        raise ConfigError(
            f"A budget of {budget} does not apply to {method} layers.",
            "",
            f"Example: {example}.",
            field="allocation",
        )
    profile = newest_profile(config.model)
    excluded = (f"{name}={Format()}" for name in read_names(config.exclude))
    pinned = pins(profile, ", ".join([*excluded, overrides]), "overrides")
    if embedding:
        pinned |= {x.name: embedding for x in profile.layers if x.block < 0}
    return budget_solver(profile, method).solve(budget, pinned).formats
