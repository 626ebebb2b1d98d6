"""Size and speed of a compressed model beside its dense one, measured on this machine: bytes in the
formats there are, and tokens per second."""

import math
from collections.abc import Mapping, Sequence
from statistics import median, stdev

from transformers import PreTrainedModel

from backend.decoding.benchmark import Decoder, MedianRange, TargetDecoder, time_decoders
from backend.decoding.draft_tree import NoDraft
from backend.decoding.peers import TransformersDecoder
from backend.decoding.target_model import TargetModel
from backend.errors import ModelError
from backend.evaluation.acceleration import sizes
from backend.export.reading import linears_in
from backend.metric_key import MetricKey
from backend.models.facts import ModelFacts
from backend.models.loading import LoadedModel
from backend.models.sources.catalogue import materialise
from backend.reporter import Reporter
from backend.text.chat_template import prompt_ids
from backend.text.prompts import benchmark_prompts
from jobs.evaluation.kind import DENSE, MODEL, REPEATS, TIMED_TOKENS
from jobs.fields.text import default_prompts
from jobs.metrics import LINEAR_BYTES, SPEED_UP, TOKENS_PER_SECOND, ZERO_SHARE
from jobs.runtime.context import JobContext


def record_sizes(facts: ModelFacts, context: JobContext) -> None:
    """Records zeros and bytes of the linears of the stored model, read block by block."""
    if context.has_result(MODEL, MetricKey(LINEAR_BYTES, series=DENSE)):
        return
    stored = linears_in(materialise(facts.spec), facts, facts.linears)
    measured = sizes(weight for block in range(facts.blocks) for _, weight in stored.block(block))
    context.result(MODEL, ZERO_SHARE, measured.zero_share, n=measured.weights)
    formats = {"bitmask": measured.bitmask}
    if measured.pattern and measured.compact is not None:
        formats[f"{measured.pattern[0]}:{measured.pattern[1]}"] = measured.compact
    for name, value in (formats | {DENSE: measured.dense}).items():  # last: then all are there
        context.result(MODEL, MetricKey(LINEAR_BYTES, series=name), value)


def prompt_for(loaded: LoadedModel) -> list[int]:
    first, *_ = benchmark_prompts(default_prompts(loaded.facts), 1)
    return prompt_ids(first.text, loaded.tokenizer)


def record_decoding(
    models: Mapping[str, PreTrainedModel],
    prompt: Sequence[int],
    longest: int,
    context: JobContext,
    reporter: Reporter,
) -> None:
    """Records how fast the model of each stage decodes, and the speed-up of the last over the
    first. They take turns behind the same prompt, of which a context of `longest` tokens may hold
    less."""
    *_, last = models
    decoders, name = decoders_of([*models.values()])
    prompt = prompt[: max(0, longest - TIMED_TOKENS - 1)]
    if not prompt:
        context.log(f"Decoding is not timed: the context holds {longest} tokens only.")
        reporter.progress(1, 1, "Measuring speed")
        return
    context.log(f"Decoder: {name}.")
    reporter.progress(0, 1, "Measuring speed")
    arms = dict(zip(models, decoders, strict=True))
    answers = time_decoders(arms, prompt, 1 + TIMED_TOKENS, (), REPEATS, reporter)
    seconds = [[sum(parts.values()) for parts in each.parts] for each in answers.values()]
    if len(models) > 1:
        ratios = [a / b for a, b in zip(seconds[0], seconds[-1], strict=True)]  # of one round each
        stderr = stdev(ratios) / math.sqrt(REPEATS)
        context.result(last, SPEED_UP, median(ratios), stderr=stderr, n=REPEATS)
    for (stage, model), taken in zip(models.items(), seconds, strict=True):
        speed = MedianRange.of([TIMED_TOKENS / s for s in taken])
        context.result(  # of the last one last: then all are there
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
        span = f"{speed.lowest:.1f} to {speed.highest:.1f}"
        context.log(f"{stage}: {speed.value:.1f} tokens/s ({span}).")


def decoders_of(models: Sequence[PreTrainedModel]) -> tuple[list[Decoder], str]:
    """Greedy decoders of each model, all alike; and how, in words."""
    try:
        targets = [TargetModel(model) for model in models]
    except ModelError:  # they cannot verify the trees of drafts
        return [TransformersDecoder(model) for model in models], "transformers"
    slowest = next((target for target in targets if not target.native), targets[0])
    if not slowest.native:
        targets = [TargetModel(model, native=False) for model in models]
    return [TargetDecoder(target, NoDraft()) for target in targets], slowest.decoder
