"""Sensitivity profiles that runs have stored, the choices they leave, and budgets: which formats,
which layers are held, and the mix. Does not import torch."""

from collections.abc import Mapping
from typing import Literal, Protocol

from backend.budget import Budget, BudgetKind, budget_of
from backend.errors import ConfigError, NotFoundError
from backend.files import fingerprint
from backend.models.layer_names import check_layer_patterns, fits, read_assignments, read_names
from backend.models.sources.catalog import local_folder
from backend.models.sources.headers import weight_files
from backend.pruning.pattern import Pattern
from backend.quantization.config import Width
from backend.sensitivity.budget import BudgetSolver
from backend.sensitivity.profile import Format, SensitivityProfile, profile_of
from backend.statistics.tensors import SENSITIVITY
from backend.store import queries
from backend.store.json_column import check_intact
from backend.store.states import State
from backend.store.tensors import named_profiles
from jobs.fields.models import ResolvedModel, resolve_model
from jobs.profile.kind import NAME, ProfileJob
from jobs.submit import validated

# In a profile's environment.
WEIGHTS_MARK, DECODING_TIMES, ESTIMATE = "weights_mark", "decoding_times", "estimate"
CALIBRATION_TOKENS, WIDEST_INPUT = "calibration_tokens", "widest_input"
Method = Literal["quantized", "pruned"]
KINDS: Mapping[Method, str] = {"quantized": "dlqat", "pruned": "sds"}  # of run that takes its mixes


def profile_of_run(run: str) -> SensitivityProfile:
    """The profile of a run, as far as it is measured. Raises NotFoundError: there is no such run;
    ConfigError: it is no profile, or none of it is measured."""
    job = queries.job(run)
    if job.kind != NAME:
        raise ConfigError(
            f"{job.run} is no sensitivity profile.",
            f"It is a run of the kind {job.kind}.",
            "Choose another run.",
        )
    check_intact(job.config)
    config = validated(NAME, job.config)
    assert isinstance(config, ProfileJob)
    facts = resolve_model(config.model, reads=False).facts
    layers = (*facts.linears, *facts.embeddings)
    stored = {
        p.tensor.removesuffix(".weight"): p.values for p in named_profiles(job.id, SENSITIVITY)
    }
    record = job.environment or {}
    times, estimate = record.get(DECODING_TIMES), record.get(ESTIMATE)
    profile = profile_of(job.run, config.model, layers, config.all_formats, stored, times, estimate)
    if not profile.layers:
        raise ConfigError(
            f"{job.run} has measured no layer yet.",
            f"It is {job.state}.",
            "Wait for its first block.",
        )
    return profile


def mark_of(base: ResolvedModel) -> str:
    """The fingerprint of a model's weights; empty where they are not on this machine."""
    folder = local_folder(base.source)
    return fingerprint(weight_files(folder)) if folder else ""


def newest_profile(model: str) -> SensitivityProfile:
    """The newest finished profile of a model. Raises NotFoundError: there is none; ConfigError: the
    model's weights are others than it has measured."""
    for job in queries.jobs([State.SUCCEEDED], NAME, 500):
        if job.config.get("model") == model:
            measured = job.environment.get(WEIGHTS_MARK)
            if measured and mark_of(resolve_model(model, reads=False)) not in ("", measured):
                raise ConfigError(
                    f"{model[:80]} has changed.",
                    f"{job.run} has measured other weights.",
                    f"Profile it again: slimscope submit profile --model {model[:80]}",
                    field="model",
                )
            return profile_of_run(job.run)
    raise NotFoundError(
        f"There is no sensitivity profile of {model[:80]}.",
        "A budget needs one.",
        f"Make it: slimscope submit profile --model {model[:80]}",
    )


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
        raise ConfigError(
            f"{profile.run} has no {method} formats.",
            "",
            "Profile the model in some.",
            field="allocation",
        )
    parameters = resolve_model(profile.model, reads=False).facts.parameters
    rest = parameters - sum(x.weights for x in profile.layers)
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
            raise ConfigError(
                f"{form[:40]!r} is not in {profile.run}.",
                "A budget needs its loss.",
                f"Choose {', '.join(sorted(known))}.",
                field=field,
            )
        held |= {layer.name: form for layer in profile.layers if fits(name, layer)}
    return held


def pruned_mix(config: Allocated, overrides: str) -> Mapping[str, Pattern]:
    """Full name -> pattern of the layers that a config's allocation prunes; empty where it is no
    mix. Raises ConfigError: the budget cannot be kept, or is none for pruning; NotFoundError: the
    model has no profile."""
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
    budget = budget_of(config.allocation)
    if budget is None:
        return {}
    if budget.kind not in kinds:
        raise ConfigError(
            f"A budget of {budget} is not for a method by which layers are {method}.",
            "",
            f"Write it as in {example}.",
            field="allocation",
        )
    profile = newest_profile(config.model)
    held = (f"{name}={Format()}" for name in read_names(config.exclude))
    held_at = pins(profile, ", ".join([*held, overrides]), "overrides")
    if embedding:
        held_at |= {x.name: embedding for x in profile.layers if x.block < 0}
    return solver_of(profile, method).solve(budget, held_at).formats
