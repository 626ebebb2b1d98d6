"""Sensitivity profiles that runs have stored, and the choices they leave. Does not import torch."""

from backend.errors import ConfigError, NotFoundError
from backend.fingerprint import fingerprint
from backend.models.sources.catalogue import local_folder
from backend.models.sources.headers import weight_files
from backend.sensitivity.profile import SensitivityProfile, profile_of
from backend.statistics.names import SENSITIVITY
from backend.store import queries
from backend.store.json_column import check_intact
from backend.store.states import State
from backend.store.tensors import named_profiles
from jobs.fields.base_model import ResolvedModel, resolve_model
from jobs.profile.config import NAME, ProfileJob
from jobs.submit import validated

WEIGHTS_MARK, DECODING_TIMES = "weights_mark", "decoding_times"  # in a profile's environment


def profile_of_run(run: str) -> SensitivityProfile:
    """The profile of a run, as far as it is measured. Raises NotFoundError: there is no such run;
    ConfigError: it is no profile, or none of it is measured."""
    job = queries.job(run)
    if job.kind != NAME:
        what = f"{job.run} is no sensitivity profile."
        raise ConfigError(what, f"It is a run of the kind {job.kind}.", "Choose another run.")
    check_intact(job.config)
    config = validated(NAME, job.config)
    assert isinstance(config, ProfileJob)
    facts = resolve_model(config.model, reads=False).facts
    layers = (*facts.linears, *facts.embeddings)
    stored = {
        p.tensor.removesuffix(".weight"): p.values for p in named_profiles(job.id, SENSITIVITY)
    }
    times = (job.environment or {}).get(DECODING_TIMES)
    profile = profile_of(job.run, config.model, layers, config.all_formats, stored, times)
    if not profile.layers:
        what = f"{job.run} has measured no layer yet."
        raise ConfigError(what, f"It is {job.state}.", "Wait for its first block.")
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
                what, why = f"{model[:80]} has changed.", f"{job.run} has measured other weights."
                again = f"Profile it again: slimscope submit profile --model {model[:80]}"
                raise ConfigError(what, why, again, field="model")
            return profile_of_run(job.run)
    raise NotFoundError(
        f"There is no sensitivity profile of {model[:80]}.",
        "A budget needs one.",
        f"Make it: slimscope submit profile --model {model[:80]}",
    )
