"""What compression really buys on this machine: bytes in the formats there are, tokens per second,
and products with the zeros left out. Measured for a saved model beside its dense one, and told in
words, so that no speed-up is believed in that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median, stdev
from typing import TYPE_CHECKING, Any, Protocol

from backend.reporter import REPLAY, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedModel

    from backend.evaluation.size import LinearSizes
    from backend.models.facts import ModelFacts
    from backend.models.loading import LoadedModel
    from jobs.runtime.context import JobContext
    from jobs.runtime.progress import Phase

DENSE, MODEL = "dense", "model"  # the two stages
SIZE, SPEED, SPEED_UP = "linear_bytes", "tokens_per_second", "speed_up"
CSR, SEMI = "product_speed_up/CSR", "product_speed_up/2:4"
TOKENS, REPEATS = 48, 5  # decoded at a time, and how often
MARGIN, SURE = 0.05, 2.0  # a speed-up by less, or by fewer standard errors, is none


# what is measured ---------------------------------------------------------------------------------


def record_sizes(facts: ModelFacts, context: JobContext) -> None:
    """Records zeros and bytes of the linears of the stored model, read block by block."""
    from backend.evaluation.size import sizes

    if context.has_result(MODEL, f"{SIZE}/dense"):
        return
    found = sizes(_stored(facts, context))
    context.result(MODEL, "zero_share", found.zero_share, n=found.weights)
    for name, value in _formats(found).items():
        context.result(MODEL, f"{SIZE}/{name}", value)


def _stored(facts: ModelFacts, context: JobContext) -> Iterator[Tensor]:
    from backend.models.sources.materialise import materialise
    from backend.models.stored_weights import StoredLinears

    stored = StoredLinears(materialise(facts.spec), facts.linears)
    for block in range(facts.blocks):
        yield from (weight for _, weight in stored.block(block))


def _formats(found: LinearSizes) -> dict[str, int]:
    """Format -> bytes; dense last, so that with it all are there."""
    formats = {"bitmask": found.bitmask}
    if found.pattern and found.compact is not None:
        formats[f"{found.pattern[0]}:{found.pattern[1]}"] = found.compact
    return formats | {"dense": found.dense}


def prompt_for(loaded: LoadedModel) -> list[int]:
    """Ids of a prompt that suits the model, so that there is room to decode `TOKENS` behind it."""
    from backend.text.prompts import BUILT_IN, STORIES, benchmark_prompts, prompt_ids

    suits = STORIES if loaded.facts.default_text == STORIES else BUILT_IN
    ids = prompt_ids(benchmark_prompts(suits, 1)[0].text, loaded.tokenizer)
    return ids[: max(1, loaded.facts.context - TOKENS - 1)]


def record_decoding(
    models: Mapping[str, PreTrainedModel],
    prompt: Sequence[int],
    context: JobContext,
    reporter: Reporter,
) -> None:
    """Records how fast the model of each stage decodes, and the speed-up of the last over the
    first. They take turns behind the ids of the same prompt."""
    from backend.evaluation.speed import DecodingSpeed, decode_seconds

    *_, last = models
    if context.has_result(last, SPEED):
        reporter.progress(1, 1, REPLAY)
        return
    seconds = decode_seconds([*models.values()], prompt, TOKENS, REPEATS, reporter)
    if len(models) > 1:
        ratios = [a / b for a, b in zip(seconds[0], seconds[-1], strict=True)]  # of one round each
        stderr = stdev(ratios) / math.sqrt(REPEATS)
        context.result(last, SPEED_UP, median(ratios), stderr=stderr, n=REPEATS)
    for (stage, model), taken in zip(models.items(), seconds, strict=True):
        speed = DecodingSpeed.of(taken, TOKENS)
        context.result(  # of the last one last: then all are there
            stage, SPEED, speed.value, n=speed.repeats, lowest=speed.lowest,
            highest=speed.highest, tokens=TOKENS, prompt=len(prompt),
            dtype=str(model.dtype).removeprefix("torch."),
        )  # fmt: skip
        span = f"{speed.lowest:.1f} to {speed.highest:.1f}"
        context.log(f"{stage}: {speed.value:.1f} tokens/s ({span}).")


def record_products(
    facts: ModelFacts, zeros: float, device: str, context: JobContext, phase: Phase
) -> None:
    """Records what products with the model's largest linear take without the zeros.

    Args:
        zeros: the model's own share of zeros, measured besides the usual ones.
    """
    import torch

    from backend.evaluation.speed import SHARES, csr_curve, semi_structured

    if context.has_result(MODEL, CSR):
        phase.progress(1, 1, REPLAY)
        return
    phase.progress(0, 1, "Timing sparse products")
    largest = max(facts.linears, key=lambda x: x.weights)
    shape, where = (largest.rows, largest.columns), torch.device(device)
    if by_batch := semi_structured(*shape, where, phase):
        context.result(MODEL, SEMI, by_batch[min(by_batch)], shape=shape,
                       batches=[*by_batch], speed_up=[*by_batch.values()])  # fmt: skip
    curve = csr_curve(*shape, where, phase, sorted({*SHARES, round(zeros, 4)} - {0.0}))
    own = min(curve.zeros, key=lambda share: abs(share - zeros))
    context.result(
        MODEL, CSR, curve.speed_up[curve.zeros.index(own)], shape=shape, own=zeros,
        zeros=curve.zeros, speed_up=curve.speed_up, break_even=curve.break_even,
    )  # fmt: skip


# in words -----------------------------------------------------------------------------------------


class Row(Protocol):
    """What is read of a row of results."""

    @property
    def stage(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def stderr(self) -> float | None: ...
    @property
    def details(self) -> dict[str, Any]: ...


Rows = Mapping[tuple[str, str], Row]  # (stage, metric) -> row


def said(rows: Rows) -> list[str]:
    """What was measured, in sentences; empty before anything was."""
    return [text for text in (_size(rows), _decoding(rows), _csr(rows), _semi(rows)) if text]


def formats(rows: Rows) -> dict[str, float]:
    """Format -> bytes of the linears, dense first."""
    sizes = {
        metric.partition("/")[2]: row.value
        for (stage, metric), row in rows.items()
        if stage == MODEL and metric.startswith(f"{SIZE}/")
    }
    return dict(sorted(sizes.items(), key=lambda item: item[0] != DENSE))


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _size(rows: Rows) -> str:
    sizes = formats(rows)
    dense = sizes.pop(DENSE, None)
    if dense is None:
        return ""
    smallest = min(sizes, key=sizes.__getitem__)
    part = sizes[smallest] / dense
    if part >= 1:
        return "Size: too few zeros for a sparse format; each would be larger than dense 16-bit."
    return (
        f"Size: as {smallest} the linear layers take {_share(part)} of dense 16-bit values. The "
        "saved file stores zeros as ordinary numbers and is not smaller."
    )


def _decoding(rows: Rows) -> str:
    keys = ((MODEL, SPEED), (DENSE, SPEED), (MODEL, SPEED_UP))
    model, dense, up = (rows.get(key) for key in keys)
    if model is None or dense is None or up is None:
        return ""
    rates = f"{_rate(model)}, the dense model {_rate(dense)}"
    if abs(up.value - 1) < max(MARGIN, SURE * (up.stderr or 0.0)):
        return f"Decoding: no speed-up here: {rates}."
    if up.value < 1:
        return f"Decoding: slower than the dense model here, {up.value:.2f} ×: {rates}."
    return f"Decoding: {up.value:.2f} × the dense speed here: {rates}."


def _rate(row: Row) -> str:
    """The median, and what the repeats lie between."""
    lowest, highest = row.details["lowest"], row.details["highest"]
    return f"{row.value:.3g} tokens/s ({lowest:.3g} to {highest:.3g})"


def _csr(rows: Rows) -> str:
    row = rows.get((MODEL, CSR))
    if row is None:
        return ""
    zeros, even = row.details["own"], row.details["break_even"]
    pays = f"it does not pay up to {_share(max(row.details['zeros']))} zeros"
    if even is not None:
        pays = f"it pays from {_share(even)} zeros on"
    now = f"{row.value:.2f} × dense at this model's {_share(zeros)}; " if zeros else ""
    return f"Leaving out the zeros (CSR), the largest layer: {now}{pays}."


def _semi(rows: Rows) -> str:
    if (MODEL, CSR) not in rows:
        return ""
    row = rows.get((MODEL, SEMI))
    if row is None:
        return "2:4 kernels: none on this device; they need a GPU with sparse tensor cores."
    pairs = zip(row.details["batches"], row.details["speed_up"], strict=True)
    told = ", ".join(f"{up:.2f} × with {n} rows at once" for n, up in pairs)
    return f"2:4 kernels, the largest layer: {told}."
