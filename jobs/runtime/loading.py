"""Models and texts of a job, loaded by its process and recorded in its environment."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from backend.decoding.native.model import decoding_dtype
from backend.export.reading import load_dequantized, load_packed
from backend.models.blocks import resolve_dtype
from backend.models.loading import LoadedModel, load, load_tokenizer, refusing, self_checked
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
    """What loading a model needs of a run, or of what has no run."""

    def log(self, text: str) -> None:
        """Write one line to the log of the run."""

    def environment(self, **facts: Any) -> None:
        """Add facts that are needed to repeat the run."""


def load_model(
    spec: str,
    device: str,
    precision: str,
    context: RunContext,
    *,
    decodes: bool = True,
    reads: bool = True,
) -> LoadedModel:
    """The model to decode with, frozen, in `precision`. `decodes`: whether decoding is most of the
    work, rather than passes over whole texts. `reads`: see `load`."""
    base = resolve_model(spec)
    if base.packed:
        context.log(f"Loading the packed weights of {spec}; they run on the CPU in bfloat16.")
        context.environment(precision="bfloat16", device="cpu")
        return _load_packed(base, context, reads)
    where = torch.device(device)
    if decodes:
        precision = decoding_dtype(precision, where, base.facts.architecture)
    else:
        precision = resolve_dtype(precision, where)
    context.log(f"Loading {spec} on {device} in {precision}.")
    context.environment(precision=precision)
    return _load_dense(base, device, precision, context, reads)


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
    base: ResolvedModel,
    device: str,
    dtype: torch.dtype,
    context: RunContext,
    streamed: bool = False,
    reads: bool = True,
) -> LoadedModel:
    """The dense model to compress or measure, packed weights unpacked. `streamed`, `reads`: see
    `load`. What is known of its weights is recorded."""
    if base.facts.note:
        context.environment(source=base.facts.note)
    if not base.packed:
        loaded = load(base.source, device, dtype, context.log, streamed, reads)
        facts, named = loaded.facts, base.facts
        return replace(
            loaded, facts=replace(facts, title=named.title, default_text=named.default_text)
        )
    context.log(f"Unpacking the weights of {base.facts.title} ({base.facts.quantized}).")
    folder = Path(base.source)
    if reads:
        load_tokenizer(folder, base.facts)
    with refusing(base.facts):
        model = load_dequantized(folder, dtype)
    return self_checked(model.to(device), base.facts, folder)  # type: ignore[arg-type]


def _load_dense(
    base: ResolvedModel, device: str, precision: str, context: RunContext, reads: bool = True
) -> LoadedModel:
    loaded = load(base.source, device, getattr(torch, precision), context.log, reads=reads)
    loaded.model.requires_grad_(False)
    return loaded


def _load_packed(base: ResolvedModel, context: RunContext, reads: bool = True) -> LoadedModel:
    folder = Path(base.source)
    if reads:
        load_tokenizer(folder, base.facts)
    with refusing(base.facts):
        model = load_packed(folder, context.log).requires_grad_(False)
    return self_checked(model, base.facts, folder)


@dataclass(frozen=True)
class RunTexts:
    """The texts of a run that calibrates, none of which shares a passage with another."""

    calibration: slices.TextSlice
    heldout: slices.TextSlice  # to choose the stage to keep by; may be empty
    evaluation: slices.TextSlice

    @property
    def judged(self) -> tuple[slices.TextSlice, slices.TextSlice]:
        """Those on which nothing is fitted."""
        return self.heldout, self.evaluation

    @property
    def by_role(self) -> dict[str, slices.TextSlice]:
        """Role -> text, of those that are not empty; the last is one to tell of."""
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
    """The calibration and the held-out slice beside the evaluation slice; records all."""
    calibration_corpus, evaluation_corpus = corpus_names(config, loaded.facts.default_text)
    length, held = evaluation.context, config.heldout_windows
    if calibration_corpus == "self":
        context.log("Sampling the calibration text from the dense model.")
        size = (config.segments + held, length, seed)
        sampled = slices.sample_slice(loaded.model, loaded.tokenizer, *size, context)
        rows = sampled.input_ids.split((config.segments, held))
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
            held,
            evaluation,
            shared=calibration_corpus == evaluation_corpus,
        )
    slices.check_apart(calibration, evaluation)
    texts = RunTexts(calibration, heldout, evaluation)
    record_texts(texts.by_role, context)
    return texts


def load_evaluation_text(
    config: EvaluationText, spec: str, context: JobContext
) -> slices.TextSlice:
    """The evaluation slice for the tokenizer of model `spec`; records it. To be called before the
    model is loaded: where the text is too short, the run ends at once."""
    source = resolve_model(spec).source
    folder = local_folder(source) or materialize(source, context.log)
    facts = resolve_model(spec).facts  # again: setting up a model gives more precise facts
    corpus, length = evaluation_name(config, facts.default_text), context_length(config, facts)
    with ThreadPoolExecutor(1) as beside:
        check = beside.submit(materialize, source, context.log)  # which sums up all its files
        try:
            tokenizer = load_tokenizer(folder, facts)
            text = slices.evaluation_slice(corpus, tokenizer, config.windows, length)
        finally:
            check.result()  # where a file has changed, that is what is said
    record_texts({"evaluation": text}, context)
    return text


def record_texts(texts: Mapping[str, slices.TextSlice], context: JobContext) -> None:
    """Records the text of each role, and says of the last what special tokens it spells out."""
    context.environment(text={role: text_facts(text) for role, text in texts.items()})
    role, text = [*texts.items()][-1]
    if text.literals:
        context.log(f"The {role} text spells out {text.literals}; they are read as plain text.")


def text_facts(text: slices.TextSlice) -> dict[str, Any]:
    """What identifies a slice: enough to cut the same one again."""
    return {
        "corpus": text.corpus,
        "sha256": text.sha256,
        "seed": text.seed,
        "context": text.context,
        "windows": int(text.input_ids.shape[0]),
        "preprocessing": text.preprocessing,
    }
