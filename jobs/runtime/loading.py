"""Loading of a job's models and texts; both are recorded in the run's environment."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from backend.decoding.native.model import decoding_dtype
from backend.export.reading import load_dequantized, load_packed
from backend.models.blocks import resolve_dtype
from backend.models.loading import (
    LoadedModel,
    as_model_error,
    check_loaded,
    load,
    load_tokenizer,
)
from backend.models.sources.catalog import local_folder, materialize
from backend.text import slices
from jobs.fields.models import ResolvedModel, resolve_model
from jobs.fields.text import (
    EvaluationText,
    TextConfig,
    context_length,
    corpus_names,
    evaluation_name,
)
from jobs.runtime.context import JobContext


class RunContext(Protocol):
    """The part of a run's context that loading a model needs."""

    def log(self, text: str) -> None:
        """Write one line to the log of the run."""

    def record_environment(self, **facts: Any) -> None:
        """Record facts that are needed to reproduce the run."""


def load_model(
    spec: str,
    device: str,
    precision: str,
    context: RunContext,
    *,
    decodes: bool = True,
    reads: bool = True,
) -> LoadedModel:
    """Load a model for decoding, frozen, in `precision`. `decodes`: True if decoding dominates the
    work, False if passes over whole texts do. `reads`: see `load`."""
    base = resolve_model(spec)
    if base.packed:
        context.log(f"Loading the packed weights of {spec}; they run on the CPU in bfloat16.")
        context.record_environment(precision="bfloat16", device="cpu")
        return _load_packed(base, context, reads)
    torch_device = torch.device(device)
    if decodes:
        precision = decoding_dtype(precision, torch_device, base.facts.architecture)
    else:
        precision = resolve_dtype(precision, torch_device)
    context.log(f"Loading {spec} on {device} in {precision}.")
    context.record_environment(precision=precision)
    return _load_dense(base, device, precision, context, reads)


def load_decoding(
    base: ResolvedModel, device: str, dtype: torch.dtype, context: RunContext
) -> LoadedModel:
    """Load the model in the form that decodes fastest: packed on a CPU if possible, in `dtype` on
    other devices. Records nothing."""
    if device != "cpu":
        return load_whole(base, device, dtype, context)
    if base.packed:
        return _load_packed(base, context)
    precision = decoding_dtype("auto", torch.device(device), base.facts.architecture)
    return _load_dense(base, device, precision, context)


def load_whole(
    base: ResolvedModel,
    device: str,
    dtype: torch.dtype,
    context: RunContext,
    streamed: bool = False,
    reads: bool = True,
) -> LoadedModel:
    """Load the dense model to compress or measure, with packed weights unpacked, and record the
    source of its weights. `streamed`, `reads`: see `load`."""
    if base.facts.note:
        context.record_environment(source=base.facts.note)
    if not base.packed:
        loaded = load(base.source, device, dtype, context.log, streamed, reads)
        title, default_text = base.facts.title, base.facts.default_text
        return replace(loaded, facts=replace(loaded.facts, title=title, default_text=default_text))
    context.log(f"Unpacking the weights of {base.facts.title} ({base.facts.quantized}).")
    folder = Path(base.source)
    if reads:
        load_tokenizer(folder, base.facts)
    with as_model_error(base.facts):
        model = load_dequantized(folder, dtype)
    return check_loaded(model.to(device), base.facts, folder)  # type: ignore[arg-type]


def _load_dense(
    base: ResolvedModel, device: str, precision: str, context: RunContext, reads: bool = True
) -> LoadedModel:
    loaded = load(base.source, device, getattr(torch, precision), context.log, with_tokenizer=reads)
    loaded.model.requires_grad_(False)
    return loaded


def _load_packed(base: ResolvedModel, context: RunContext, reads: bool = True) -> LoadedModel:
    folder = Path(base.source)
    if reads:
        load_tokenizer(folder, base.facts)
    with as_model_error(base.facts):
        model = load_packed(folder, context.log).requires_grad_(False)
    return check_loaded(model, base.facts, folder)


@dataclass(frozen=True)
class RunTexts:
    """Texts of a calibrated run. No passage is in two of them."""

    calibration: slices.TextSlice
    heldout: slices.TextSlice  # decides which stage is kept; may be empty
    evaluation: slices.TextSlice

    @property
    def judged(self) -> tuple[slices.TextSlice, slices.TextSlice]:
        """Texts on which nothing is fitted."""
        return self.heldout, self.evaluation

    @property
    def by_role(self) -> dict[str, slices.TextSlice]:
        """Non-empty texts by role. The last one is named in the log."""
        roles = {"evaluation": self.evaluation, "held-out": self.heldout}
        texts = roles | {"calibration": self.calibration}
        return {role: text for role, text in texts.items() if text.tokens}


def load_texts(
    config: TextConfig,
    loaded: LoadedModel,
    evaluation: slices.TextSlice,
    seed: int,
    context: JobContext,
) -> RunTexts:
    """Load the calibration and held-out slices, disjoint from `evaluation`, and record all
    three."""
    calibration_corpus, evaluation_corpus = corpus_names(config, loaded.facts.default_text)
    length, heldout_windows = evaluation.context, config.heldout_windows
    if calibration_corpus == "self":
        context.log("Sampling the calibration text from the dense model.")
        size = (config.segments + heldout_windows, length, seed)
        sampled = slices.sample_slice(loaded.model, loaded.tokenizer, *size, context)
        rows = sampled.input_ids.split((config.segments, heldout_windows))
        calibration, heldout = (
            slices.slice_of(part, loaded.tokenizer, "self", "calibration", seed, sampled.bos)
            for part in rows
        )
    else:
        calibration, heldout = slices.calibration_slices(
            calibration_corpus,
            loaded.tokenizer,
            config.segments,
            length,
            seed,
            heldout_windows,
            evaluation,
            shared=calibration_corpus == evaluation_corpus,
        )
    slices.require_disjoint(calibration, evaluation)
    texts = RunTexts(calibration, heldout, evaluation)
    record_texts(texts.by_role, context)
    return texts


def load_evaluation_text(
    config: EvaluationText, spec: str, context: JobContext
) -> slices.TextSlice:
    """Load and record the evaluation slice for the tokenizer of model `spec`. Called before the
    model is loaded, so that a run with too short a text fails at once."""
    source = resolve_model(spec).source
    folder = local_folder(source) or materialize(source, context.log)
    facts = resolve_model(spec).facts  # resolved again: materializing a model refines its facts
    corpus, length = evaluation_name(config, facts.default_text), context_length(config, facts)
    with ThreadPoolExecutor(1) as executor:
        check = executor.submit(materialize, source, context.log)  # hashes all files
        try:
            tokenizer = load_tokenizer(folder, facts)
            text = slices.evaluation_slice(corpus, tokenizer, config.windows, length)
        finally:
            check.result()  # a changed file is the error to report
    record_texts({"evaluation": text}, context)
    return text


def record_texts(texts: Mapping[str, slices.TextSlice], context: JobContext) -> None:
    """Record the texts, and log special tokens that the last one spells out."""
    context.record_environment(text={role: text_facts(text) for role, text in texts.items()})
    role, text = [*texts.items()][-1]
    if text.literals:
        context.log(f"The {role} text spells out {text.literals}; they are read as plain text.")


def text_facts(text: slices.TextSlice) -> dict[str, Any]:
    """Return the facts that identify a slice and suffice to recreate it."""
    return {
        "corpus": text.corpus,
        "sha256": text.sha256,
        "seed": text.seed,
        "context": text.context,
        "windows": int(text.input_ids.shape[0]),
        "preprocessing": text.preprocessing,
    }
