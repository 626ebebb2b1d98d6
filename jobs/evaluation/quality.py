"""Measurements of a run's stages. Figures recorded by an earlier attempt are not measured again.

- Quality: perplexity and bits per byte of every stage; divergence, greedy samples and tasks of the
  dense model and the kept stage.
- Size: bytes of the linear layers in each available format.
- Speed: tokens per second on this machine, compared to the dense model.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from statistics import median, stdev
from typing import Any, Literal

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from backend.decoding.benchmark import (
    Decoder,
    MedianRange,
    TargetDecoder,
    TransformersDecoder,
    time_decoders,
)
from backend.decoding.draft_tree import NoDraft
from backend.decoding.target_model import TargetModel
from backend.errors import ModelError
from backend.evaluation.acceleration import sizes
from backend.evaluation.divergence import DenseOutputs, DivergenceObserver, outside_blocks
from backend.evaluation.native_text import (
    NativeText,
    TextModel,
    agreement,
    text_model,
    write_samples,
)
from backend.evaluation.perplexity import Observe, perplexity, window_nlls
from backend.evaluation.zero_shot import load_tasks, questions, score_endings, zero_shot
from backend.export.reading import linears_in
from backend.metric_key import MetricKey
from backend.models.block_forward import NewBatches, batches_in
from backend.models.block_offload import is_streamed
from backend.models.devices import free_memory
from backend.models.facts import ModelFacts
from backend.models.loading import LoadedModel
from backend.models.memory import activation_memory, spills_to_disk
from backend.models.sources.catalog import materialize
from backend.reporter import REPLAY, Reporter
from backend.settings import settings
from backend.statistics.paired import WINDOW_LOSSES
from backend.statistics.tensors import TensorProfile
from backend.store import queries
from backend.text.chat_template import prompt_ids
from backend.text.prompts import benchmark_prompts
from backend.text.slices import TextSlice
from jobs.evaluation.kind import DENSE, MODEL, REPEATS, SAMPLED, TIMED_TOKENS, load_samples
from jobs.fields.text import ENDINGS, SAMPLE_PROMPTS, QualityConfig, default_prompts
from jobs.metrics import (
    ACCURACY,
    BITS_PER_BYTE,
    KL_TO_DENSE,
    LINEAR_BYTES,
    PERPLEXITY,
    SPEED_UP,
    TOKENS_PER_SECOND,
    TOP1_AGREEMENT,
    ZERO_SHARE,
)
from jobs.runtime.context import JobContext
from jobs.runtime.loading import text_facts
from jobs.runtime.progress import Phase

TEXT_ALONE = QualityConfig(sample_tokens=0)  # evaluation runs measure samples and tasks
Role = Literal["dense", "kept", ""]  # role of a stage in the run
ENDINGS_ACCURACY = replace(ACCURACY, series=ENDINGS)


def hidden_state_store(
    choice: str, loaded: LoadedModel, text: TextSlice, context: JobContext
) -> NewBatches:
    """Return the storage for hidden states of the evaluation text: memory or the run's folder.
    `choice` is memory, disk, or auto (by the free memory of the model's device)."""
    needed = activation_memory(loaded.facts, len(text.input_ids), text.context, "float32")
    on_disk = spills_to_disk(choice, needed, free_memory(loaded.model.device))
    return batches_in(context.work if on_disk else None)


def window_losses(stage: str, losses: Sequence[float]) -> TensorProfile:
    """Return the loss of a stage on each window as a profile of the whole model."""
    return TensorProfile("", -1, "", stage, WINDOW_LOSSES, np.array(losses, np.float32))


class Quality:
    """Measures the stages of one run.

    Args:
        config: samples and tasks to measure.
        loaded: the model, whose weights change from stage to stage.
        evaluation: evaluation text.
        context: context of the run, which receives the results.
        batch: windows per forward pass.
        labels: stage -> label.
        new_store: creates a storage for hidden states.
        divergence: True to compare the outputs of the kept stage with those of the dense stage.
        precision: the config's evaluation precision.
        rounded: precision to which uncompressed parameters were rounded before the dense stage;
            empty if they were not.

    Raises:
        ConfigError: unknown task.
        DatasetError: the data of a task is not available.
    """

    def __init__(
        self,
        config: QualityConfig,
        loaded: LoadedModel,
        evaluation: TextSlice,
        context: JobContext,
        *,
        batch: int,
        labels: Mapping[str, str],
        new_store: NewBatches = list,
        divergence: bool = True,
        precision: str = "auto",
        rounded: str = "",
    ) -> None:
        self._config, self._loaded, self._text = config, loaded, evaluation
        self._context, self._batch, self._labels = context, batch, labels
        self._new_store = new_store
        self._prompt_set = default_prompts(loaded.facts)  # the same for all models
        self._reference, self._divergence = DenseOutputs(new_store), divergence
        self._precision, self._decoder = precision, ""
        self._rounded = {"rounded": rounded} if rounded else {}
        self._reader: TextModel | None = None  # reader of the current stage
        names = config.harness_tasks
        self._tasks = load_tasks(names, settings().text_dir) if names else {}
        self._writes = config.sample_tokens > 0 and not is_streamed(loaded.model)
        if config.sample_tokens and not self._writes:
            context.log("No samples are generated: every token would read the model from disk.")

    def for_model(self, loaded: LoadedModel) -> "Quality":
        """Return the same measurements for another model, compared to the same dense model."""
        quality = copy(self)
        quality._loaded = loaded
        return quality

    def missing(self, stage: str, role: Role = "") -> bool:
        """Return True if the stage has to be installed because measurements are missing."""
        return any(True for _ in self._missing(stage, role))

    def measure(self, stage: str, reporter: Phase, role: Role = "") -> None:
        """Measure the model in its current state and record the results for `stage`."""
        missing = [*self._missing(stage, role)]
        if missing:
            self._context.log(f"Measuring: {self._labels.get(stage, stage)}.")
        else:
            reporter.progress(1, 1, REPLAY)
        try:
            for number, measurement in enumerate(missing):
                measurement(reporter.part(number, len(missing)))
        finally:
            self._reader = None

    def losses(self, windows: Tensor, reporter: Phase) -> list[float]:
        """Return the nats per predicted token of each of `windows` [n, L] in the current state of
        the model. L is the context length of the text. `measure` reuses the same reader."""
        reading = self._read(), windows, self._batch, reporter, self._new_store
        return window_nlls(*reading, activity="Held-out loss").tolist()

    def _read(self) -> TextModel:
        """Return the reader of texts for the current state of the model."""
        if self._reader is None:
            self._reader, how = text_model(self._loaded.model, self._precision, self._text.context)
            if how != self._decoder:
                self._context.log(f"Texts are read by {how}.")
                self._context.record_environment(evaluation=how)
                self._decoder = how
        return self._reader

    def _missing(self, stage: str, role: Role) -> Iterator[Callable[[Phase], None]]:
        if self._text_missing(stage, role):
            yield partial(self._measure_text, stage, role)
        if role and self._writes and not self._has(stage, SAMPLED):
            yield partial(self._write_samples, stage)
        if role and self._unanswered(stage):
            yield partial(self._answer, stage)
        if role and self._config.asks_endings and not self._has(stage, ENDINGS_ACCURACY):
            yield partial(self._choose_endings, stage)

    def _has(self, stage: str, metric: MetricKey) -> bool:
        return self._context.has_result(stage, metric)

    # on the evaluation text ------------------------------------------------------------------

    def _text_missing(self, stage: str, role: Role) -> bool:
        """Return True if a pass over the evaluation text is needed. The dense pass is repeated if
        the divergence of the kept stage is missing, which needs its outputs."""
        if not self._has(stage, PERPLEXITY):
            return True
        if role == "kept":
            return self._divergence and not self._has(stage, KL_TO_DENSE)
        if role != "dense" or not self._divergence:
            return False
        return all(r.metric != KL_TO_DENSE for r in queries.results([self._context.run]))

    def _measure_text(self, stage: str, role: Role, reporter: Phase) -> None:
        model = self._read()
        is_compared = role == "kept" and self._comparable(model)
        comparison = DivergenceObserver(model, self._reference) if is_compared else None
        recording: AbstractContextManager[Observe]
        recording = nullcontext(comparison or (lambda rows, logits: None))
        if role == "dense" and self._divergence:
            recording = self._reference.recording(model)
        with recording as observe:
            measured = perplexity(
                model, self._text, self._batch, reporter, self._new_store, observe
            )
        notes = text_facts(self._text) | {"decoder": self._decoder} | self._rounded
        result, n = self._context.result, measured.tokens
        divergence = comparison.result() if comparison else None
        # figures that `_text_missing` checks come last: a resumed run assumes that the others exist
        self._context.profile(window_losses(stage, measured.windows))
        result(stage, BITS_PER_BYTE, measured.bits_per_byte, n=n, **notes)
        if divergence:
            agreement, stderr = divergence.agreement, divergence.agreement_stderr
            result(stage, TOP1_AGREEMENT, agreement, stderr=stderr, n=divergence.tokens, **notes)
        result(stage, PERPLEXITY, measured.value, stderr=measured.stderr, n=n, **notes)
        if divergence:
            kl, stderr = divergence.kl, divergence.kl_stderr
            result(stage, KL_TO_DENSE, kl, stderr=stderr, n=divergence.tokens, **notes)
        spread = "" if measured.stderr is None else f" ± {measured.stderr:.3f}"
        label = self._labels.get(stage, stage)
        self._context.log(f"{label}: perplexity {measured.value:.3f}{spread}.")

    def _comparable(self, model: TextModel) -> bool:
        """Return True if the predictions can be compared with those of the dense model."""
        if not self._divergence:
            return False
        if isinstance(model, NativeText) != self._reference.native:
            self._context.log(
                "The divergence is not measured: the dense model ran in another decoder."
            )
            return False
        if outside_blocks(self._loaded.model) == self._reference.outside:
            return True
        self._context.log(
            "The divergence is not measured: embeddings, final norm or head differ from the dense "
            "model."
        )
        return False

    # samples and tasks -----------------------------------------------------------------------

    def _write_samples(self, stage: str, reporter: Phase) -> None:
        prompts = benchmark_prompts(self._prompt_set, SAMPLE_PROMPTS)
        texts = write_samples(
            self._read(),
            self._loaded.tokenizer,
            prompts,
            self._config.sample_tokens,
            reporter,
        )
        samples = [vars(sample) | {"tokens": list(sample.tokens)} for sample in texts]
        dense = load_samples(self._context.run) or samples
        same = agreement([s["tokens"] for s in dense], [s["tokens"] for s in samples])
        self._context.result(stage, SAMPLED, same, n=len(samples), samples=samples)

    def _choose_endings(self, stage: str, reporter: Phase) -> None:
        ending_questions = questions(self._text, self._config.task_limit)
        score = score_endings(
            self._read(), ending_questions, self._batch, reporter, self._new_store
        )
        self._context.result(
            stage,
            ENDINGS_ACCURACY,
            score.accuracy,
            stderr=score.stderr,
            n=len(score.correct),
            task=ENDINGS,
            figure="accuracy",
            **text_facts(self._text),
        )

    def _unanswered(self, stage: str) -> dict[str, Any]:
        results = queries.results([self._context.run])
        answered = {r.metric.series for r in results if r.stage == stage}
        return {name: task for name, task in self._tasks.items() if name not in answered}

    def _answer(self, stage: str, reporter: Phase) -> None:
        for score in zero_shot(
            self._loaded.model,
            self._loaded.tokenizer,
            self._unanswered(stage),
            self._config.task_limit,
            self._batch,
            reporter,
        ):
            is_accuracy = score.metric in ("acc_norm", "acc", "exact_match")
            family = ACCURACY.family if is_accuracy else score.metric
            self._context.result(
                stage,
                MetricKey(family, series=score.task),
                score.value,
                stderr=score.stderr,
                n=score.n,
                task=score.task,
                figure=score.metric,
            )


def record_sizes(facts: ModelFacts, context: JobContext) -> None:
    """Record zeros and bytes of the linear layers of the stored model, read block by block."""
    if context.has_result(MODEL, MetricKey(LINEAR_BYTES, series=DENSE)):
        return
    linears = linears_in(materialize(facts.spec), facts, facts.linears)
    measured = sizes(weight for block in range(facts.blocks) for _, weight in linears.block(block))
    context.result(MODEL, ZERO_SHARE, measured.zero_share, n=measured.weights)
    formats = {"bitmask": measured.bitmask}
    if measured.pattern and measured.compact is not None:
        formats[f"{measured.pattern[0]}:{measured.pattern[1]}"] = measured.compact
    formats[DENSE] = measured.dense  # the last one: it marks the record as complete
    for name, value in formats.items():
        context.result(MODEL, MetricKey(LINEAR_BYTES, series=name), value)


def prompt_for(loaded: LoadedModel) -> list[int]:
    """Return the token ids of the prompt used to time decoding."""
    first, *_ = benchmark_prompts(default_prompts(loaded.facts), 1)
    return prompt_ids(first.text, loaded.tokenizer)


def record_decoding(
    models: Mapping[str, PreTrainedModel],
    prompt: Sequence[int],
    longest: int,
    context: JobContext,
    reporter: Reporter,
) -> None:
    """Record the decoding speed of the model of each stage, and the speed-up of the last over the
    first. Models decode in turn after the same prompt, truncated to a context of `longest`
    tokens."""
    *_, last_stage = models
    decoders, name = decoders_of([*models.values()])
    prompt = prompt[: max(0, longest - TIMED_TOKENS - 1)]
    if not prompt:
        context.log(f"Decoding is not timed: the context has only {longest} tokens.")
        reporter.progress(1, 1, "Measuring speed")
        return
    context.log(f"Decoder: {name}.")
    reporter.progress(0, 1, "Measuring speed")
    decoder_of_stage = dict(zip(models, decoders, strict=True))
    answers = time_decoders(decoder_of_stage, prompt, 1 + TIMED_TOKENS, (), REPEATS, reporter)
    seconds = [[sum(parts.values()) for parts in answer.parts] for answer in answers.values()]
    if len(models) > 1:
        ratios = [a / b for a, b in zip(seconds[0], seconds[-1], strict=True)]  # per round
        stderr = stdev(ratios) / math.sqrt(REPEATS)
        context.result(last_stage, SPEED_UP, median(ratios), stderr=stderr, n=REPEATS)
    for (stage, model), stage_seconds in zip(models.items(), seconds, strict=True):
        speed = MedianRange.of([TIMED_TOKENS / s for s in stage_seconds])
        context.result(  # the last stage comes last: it marks the record as complete
            stage,
            TOKENS_PER_SECOND,
            speed.value,
            n=REPEATS,
            lowest=speed.lowest,
            highest=speed.highest,
            tokens=TIMED_TOKENS,
            prompt=len(prompt),
            decoder=name,
            dtype=str(model.dtype).removeprefix("torch."),
        )
        context.log(
            f"{stage}: {speed.value:.1f} tokens/s ({speed.lowest:.1f} to {speed.highest:.1f})."
        )


def decoders_of(models: Sequence[PreTrainedModel]) -> tuple[list[Decoder], str]:
    """Return greedy decoders of the models, all of the same type, and the name of this type."""
    try:
        targets = [TargetModel(model) for model in models]
    except ModelError:  # models that cannot verify draft trees
        return [TransformersDecoder(model) for model in models], "transformers"
    slowest = next((target for target in targets if not target.native), targets[0])
    if not slowest.native:
        targets = [TargetModel(model, native=False) for model in models]
    return [TargetDecoder(target, NoDraft()) for target in targets], slowest.decoder
