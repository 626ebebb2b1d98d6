"""SDS pruning job: load, measure, prune, re-densify, prune again, measure each stage, save."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.kept_stage import KeptStage
from backend.checkpoints import Checkpoints
from backend.export.card import ModelOrigin, copy_terms, origin_of, pruned_card
from backend.models.devices import device_memory
from backend.models.loading import LoadedModel, weights_hash
from backend.models.saving import save
from backend.pruning.config import STAGE_LABELS, STEP_LABELS, SDSStage
from backend.pruning.plan import PruningPlan
from backend.pruning.sds import SDSResult, run_sds
from backend.store import queries
from jobs.evaluation.quality import TEXT_ALONE, Quality, hidden_state_store
from jobs.fields.models import resolve_model
from jobs.metrics import HELDOUT_LOSS, PERPLEXITY, RELATIVE_ERROR, ZERO_SHARE
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_evaluation_text, load_texts, load_whole
from jobs.runtime.progress import Phase, Phases
from jobs.sds.kind import SDSJob, memory_bytes, work

MIN_STEP_S = 0.05  # shorter steps are not recorded


def run(config: SDSJob, context: JobContext) -> None:
    """Run the job. Finished work is in checkpoints and the database, so an interrupted run
    continues where it stopped."""
    device, plan = prepare(config, context), PruningPlan.model_validate(context.plan)
    base = resolve_model(config.model)
    available = device_memory(device)
    dtype = available.dtype(base.facts.dtype)
    streamed, _ = memory_bytes(config, base.facts, available.free, dtype)
    how = "block by block" if streamed else "at once"
    evaluation = load_evaluation_text(config, config.model, context)
    context.log(f"Loading {config.model} on {device}, {how}.")
    loaded = load_whole(base, device, getattr(torch, dtype), context, streamed)
    round_matrices(loaded.model, loaded.saved_dtype)
    phases = context.phases(work(config, plan, loaded.facts))
    texts = load_texts(config, loaded, evaluation, config.seed, context)
    quality = Quality(
        TEXT_ALONE,
        loaded,
        evaluation,
        context,
        batch=config.batch,
        labels=STAGE_LABELS,
        new_store=hidden_state_store(config.activations, loaded, evaluation, context),
        precision=config.evaluation_precision,
    )
    quality.measure(SDSStage.DENSE, phases.phase("dense"))
    result = run_sds(
        loaded.model,
        texts.calibration.input_ids,
        config,
        plan,
        context.checkpoints,
        phases.phase("prune"),
        loaded.saved_dtype,
        texts.heldout.input_ids,
        StageQuality(quality, phases, plan.stages),
    )
    record(result, context)
    save_model(loaded, result.kept, config, context)


@torch.no_grad()
def round_matrices(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round the matrices of a model in memory to the dtype that it is saved in, so that the dense
    stage is measured as it would be saved."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.is_meta and parameter.dtype != dtype:
            parameter.copy_(parameter.to(dtype))


@dataclass(frozen=True)
class StageQuality:
    """Measures a stage on held-out and evaluation text, with one layout of its weights."""

    quality: Quality
    phases: Phases
    stages: Sequence[SDSStage]

    def losses(self, stage: SDSStage, windows: Tensor) -> list[float]:
        return self.quality.losses(windows, self._part(stage, 0))

    def is_missing(self, stage: SDSStage) -> bool:
        return self.quality.missing(stage)

    def measure(self, stage: SDSStage) -> None:
        self.quality.measure(stage, self._part(stage, 1))

    def _part(self, stage: SDSStage, half: int) -> Phase:
        index = self.stages.index(stage)
        return self.phases.phase("evaluate", index, len(self.stages)).part(half, 2)


def record(result: SDSResult, context: JobContext) -> None:
    """Record zeros, held-out losses, errors and step times reported by the method."""
    by_stage = {
        ZERO_SHARE: result.zero_share,
        HELDOUT_LOSS: result.heldout,
        RELATIVE_ERROR: result.errors,
    }
    for metric, values in by_stage.items():
        for stage, value in values.items():
            context.result(stage, metric, value)
    for step, seconds in result.seconds.items():
        if seconds >= MIN_STEP_S:  # statistics computed during other work take no extra time
            context.step_time(STEP_LABELS[step], seconds)
    context.keep(KeptStage(result.kept, result.reason))
    context.record_environment(warnings=list(result.warnings))


def save_model(
    loaded: LoadedModel, kept_stage: SDSStage, config: SDSJob, context: JobContext
) -> None:
    """Save the kept stage, which `loaded` holds, in a format that transformers loads."""
    digest = weights_hash(loaded.model)
    origin = origin_of(config.model)
    text = card(loaded, kept_stage, config, context, origin)
    with Checkpoints(context.folder).write("model") as folder:
        save(loaded.model, loaded.tokenizer, folder, text, loaded.saved_dtype)
        copy_terms(origin, folder)
    context.record_environment(weights_sha256=digest)
    context.artifact(context.folder / "model", "model", digest)
    context.log(f"Saved the model ({STAGE_LABELS[kept_stage]}). sha256 of its weights: {digest}")


def card(
    loaded: LoadedModel,
    kept_stage: SDSStage,
    config: SDSJob,
    context: JobContext,
    origin: ModelOrigin,
) -> str:
    """Return the text of the model card."""
    measured = {
        str(metric): {STAGE_LABELS[r.stage]: r.value for r in rows if r.metric == metric}
        for rows in [queries.results([context.run])]
        for metric in (PERPLEXITY, ZERO_SHARE)
    }
    return pruned_card(
        loaded.facts.title,
        context.run,
        STAGE_LABELS[kept_stage],
        "SDS" if config.until == "sds" else config.base,
        str(config.pattern),
        origin,
        loaded.facts.note,
        measured,
        config.model_dump(mode="json"),
        queries.job(context.run).environment.get("text", {}),
    )
