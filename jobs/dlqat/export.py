"""Export of a DL-QAT run: the model, its size, and its decoding speed on packed weights."""

import hashlib
from dataclasses import replace

import torch

from backend.checkpoints import Checkpoints
from backend.decoding.native.model import obstacle
from backend.export.card import copy_terms, model_card, origin_of
from backend.export.formats import bits_per_weight, layout_of
from backend.export.reading import load_packed
from backend.export.writing import export
from backend.metric_key import MetricKey
from backend.models.block_offload import is_streamed
from backend.models.blocks import to_bfloat16
from backend.models.facts import ModelFacts
from backend.models.loading import LoadedModel
from backend.quantization.config import STAGE_LABELS, DLQATStage
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.plan import QuantizationPlan
from backend.reporter import REPLAY
from backend.store import queries
from jobs.dlqat.kind import DLQATJob
from jobs.evaluation.quality import record_decoding
from jobs.metrics import BYTES, PERPLEXITY, TOKENS_PER_SECOND
from jobs.runtime.context import JobContext
from jobs.runtime.progress import Phase

MODEL = "model"  # folder of the exported model
PROMPT_TOKENS = 64  # prompt length in the timing


def mean_bits(plan: QuantizationPlan, facts: ModelFacts, dtype: str) -> float:
    """Return the mean number of stored bits per weight over all quantized layers."""
    total = weights = 0.0
    for x in facts.linears:
        if settings := plan.layers.get(x.name):
            group_size = settings.group_size or x.columns
            total += x.weights * bits_per_weight(settings.bits, group_size, settings.grid, dtype)
            weights += x.weights
    return total / weights


def save_model(
    qat: DLQAT, kept_stage: str, loaded: LoadedModel, config: DLQATJob, context: JobContext
) -> None:
    """Export the kept stage and record it."""
    layers, digest = qat.converted(kept_stage), hashlib.sha256()
    for name, layer in layers.items():
        for part, tensor in layer.tensors().items():
            digest.update(f"{name}.{part}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
    layout, embeddings = layout_of(qat.run.plan, qat.run.plan.format), [*qat.run.embeddings]
    exported = ((x, tuple(n for n in x.layers if n in layers)) for x in layout.others)
    layout = replace(layout, others=tuple(replace(x, layers=n) for x, n in exported if n))
    perplexities = {
        STAGE_LABELS[r.stage]: r.value
        for r in queries.results([context.run])
        if r.metric == PERPLEXITY
    }
    card = model_card(
        loaded.facts.title,
        context.run,
        STAGE_LABELS[kept_stage],
        origin := origin_of(config.model),
        loaded.facts.note,
        layout,
        mean_bits(qat.run.plan, loaded.facts, config.saved_precision),
        perplexities,
        config.model_dump(mode="json"),
        queries.job(context.run).environment.get("text", {}),
        embeddings,
    )
    with Checkpoints(context.folder).write(MODEL) as folder:
        dtype = (
            loaded.saved_dtype
            if config.format == "dense"
            else getattr(torch, config.saved_precision)
        )
        export(loaded.model, loaded.tokenizer, layers, layout, dtype, folder, card)
        copy_terms(origin, folder)
    files = (context.folder / MODEL).glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    context.result(kept_stage, MetricKey(BYTES, series=config.format), size)
    context.record_environment(weights_sha256=digest.hexdigest())
    context.artifact(context.folder / MODEL, "model", digest.hexdigest())
    context.log(f"Exported {STAGE_LABELS[kept_stage]} as {config.format}, {size / 1e6:.1f} MB.")


def time_packed(
    loaded: LoadedModel,
    kept_stage: str,
    prompt: list[int],
    config: DLQATJob,
    reporter: Phase,
    context: JobContext,
) -> None:
    """Record tokens per second of the dense model and of the exported packed model. Converts
    `loaded` to bfloat16 in place."""
    if not config.packed or context.has_result(kept_stage, TOKENS_PER_SECOND):
        reporter.progress(1, 1, REPLAY)
        return
    on_cpu = loaded.model.device.type == "cpu" and not is_streamed(loaded.model)
    if config.format == "dense" or not on_cpu:
        context.log("Packed decoding is not timed: it needs packed weights, a CPU and the memory.")
        return
    to_bfloat16(loaded.model)
    if reason := obstacle(loaded.model):
        context.log(f"Packed decoding is not timed. {reason}")
        return
    packed = load_packed(context.folder / MODEL, context.log)
    models = {str(DLQATStage.DENSE): loaded.model, kept_stage: packed}
    record_decoding(models, prompt[:PROMPT_TOKENS], loaded.facts.context, context, reporter)
