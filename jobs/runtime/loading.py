"""Models and texts of a job, loaded by its process and recorded in its environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backend.decoding.native.model import decoding_dtype
from backend.export.reading import load_dequantized, load_packed
from backend.models.loading import LoadedModel, load, load_tokenizer, refusing, self_checked
from backend.models.precision import resolve_dtype
from backend.text.slices import (
    TextSlice,
    calibration_slice,
    check_apart,
    evaluation_slice,
    sample_slice,
)
from jobs.fields.base_model import ResolvedModel, resolve_model
from jobs.fields.text import (
    EvaluationText,
    TextConfig,
    context_length,
    corpus_names,
    evaluation_name,
)
from jobs.runtime.context import JobContext
from jobs.runtime.rank import RunContext


def load_model(
    spec: str, device: str, precision: str, context: RunContext, *, decodes: bool = True
) -> LoadedModel:
    """The model to decode with, frozen, in `precision`.

    Args:
        decodes: whether decoding is most of the work, rather than passes over whole texts.
    """
    base = resolve_model(spec)
    if base.packed:
        context.log(f"Loading the packed weights of {spec}; they run on the CPU in bfloat16.")
        context.environment(precision="bfloat16", device="cpu")
        return _load_packed(base, context)
    where = torch.device(device)
    if decodes:
        precision = decoding_dtype(precision, where, base.facts.architecture)
    else:
        precision = resolve_dtype(precision, where)
    context.log(f"Loading {spec} on {device} in {precision}.")
    context.environment(precision=precision)
    return _load_dense(base, device, precision, context)


def load_decoding(
    base: ResolvedModel, device: str, dtype: torch.dtype, context: RunContext
) -> LoadedModel:
    """The model as it decodes fastest on a CPU, packed if it can be; in `dtype` on other devices.
    Nothing of it is recorded."""
    if device != "cpu":
        return load_whole(base, device, dtype, context)
    if base.packed:
        return _load_packed(base, context)
    precision = decoding_dtype("auto", torch.device(device), base.facts.architecture)
    return _load_dense(base, device, precision, context)


def load_whole(
    base: ResolvedModel, device: str, dtype: torch.dtype, context: RunContext,
    streamed: bool = False,
) -> LoadedModel:  # fmt: skip
    """The dense model to compress or measure, packed weights unpacked. `streamed`: see `load`.
    What is known of its weights is recorded."""
    if base.facts.note:
        context.environment(source=base.facts.note)
    if not base.packed:
        loaded = load(base.source, device, dtype, context.log, streamed)
        facts, named = loaded.facts, base.facts
        return replace(
            loaded, facts=replace(facts, title=named.title, default_text=named.default_text)
        )
    context.log(f"Unpacking the weights of {base.facts.title} ({base.facts.quantized}).")
    tokenizer = load_tokenizer(Path(base.source), base.facts)
    with refusing(base.facts):
        model = load_dequantized(Path(base.source), dtype)
    return self_checked(model.to(device), tokenizer, base.facts)  # type: ignore[arg-type]


def _load_dense(
    base: ResolvedModel, device: str, precision: str, context: RunContext
) -> LoadedModel:
    loaded = load(base.source, device, getattr(torch, precision), context.log)
    loaded.model.requires_grad_(False)
    return loaded


def _load_packed(base: ResolvedModel, context: RunContext) -> LoadedModel:
    folder = Path(base.source)
    tokenizer = load_tokenizer(folder, base.facts)
    with refusing(base.facts):
        model = load_packed(folder, context.log).requires_grad_(False)
    return self_checked(model, tokenizer, base.facts)


def load_texts(
    config: TextConfig, loaded: LoadedModel, seed: int, context: JobContext
) -> tuple[TextSlice, TextSlice]:
    """The calibration and the evaluation slice; records both, and that they share nothing."""
    calibration_corpus, evaluation_corpus = corpus_names(config, loaded.facts.default_text)
    length = context_length(config, loaded.facts)
    shared = calibration_corpus == evaluation_corpus
    evaluation = evaluation_slice(
        evaluation_corpus, loaded.tokenizer, config.windows, length, shared=shared
    )
    size = (config.segments, length, seed)
    if calibration_corpus == "self":
        context.log("Sampling the calibration text from the dense model.")
        calibration = sample_slice(loaded.model, loaded.tokenizer, *size, context)
    else:
        calibration = calibration_slice(calibration_corpus, loaded.tokenizer, *size, shared=shared)
    check_apart(calibration, evaluation)
    both = {"calibration": text_facts(calibration), "evaluation": text_facts(evaluation)}
    context.environment(text=both)
    return calibration, evaluation


def load_evaluation_text(
    config: EvaluationText, loaded: LoadedModel, context: JobContext
) -> TextSlice:
    """The evaluation slice alone, apart from whatever a run calibrates on; records it."""
    corpus = evaluation_name(config, loaded.facts.default_text)
    length = context_length(config, loaded.facts)
    text = evaluation_slice(corpus, loaded.tokenizer, config.windows, length)
    context.environment(text={"evaluation": text_facts(text)})
    return text


def text_facts(text: TextSlice) -> dict[str, Any]:
    """What identifies a slice: enough to cut the same one again."""
    return {
        "corpus": text.corpus, "sha256": text.sha256, "seed": text.seed, "context": text.context,
        "windows": int(text.input_ids.shape[0]), "preprocessing": text.preprocessing,
    }  # fmt: skip
