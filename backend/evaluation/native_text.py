"""A model that reads and writes texts by the native decoder, in bfloat16; and what computes the
passes of an evaluation, this one or the model itself in PyTorch.

It reads where it is faster than PyTorch on this machine (`kernels.speeds`). Weights and inputs of
products are rounded to bfloat16, sums are float32.

Sample texts are compared with those of the dense model:

    agreement = mean_i (tokens before the first difference)_i / n_i    prompt i, n_i greedy tokens

It is 1 for equal texts, and stricter than the share of equal next tokens on a given text. With few
prompts it is an illustration, not a basis for ranking models."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from statistics import fmean
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.compiler import CompilerError
from backend.decoding.benchmark import same_start
from backend.decoding.native.families import stable_context, unsupported
from backend.decoding.native.model import NativeModel
from backend.decoding.serving.loop import answers
from backend.decoding.serving.request import GenerationRequest
from backend.decoding.target_model import TargetModel
from backend.kernels.speeds import reading_speeds
from backend.models.block_forward import NewBatches, after_blocks, each_logits
from backend.models.block_offload import is_streamed
from backend.models.kv_cache import greedy
from backend.models.memory import memory_available
from backend.reporter import Reporter, stop_if_asked
from backend.text.chat_template import end_ids, prompt_ids
from backend.text.prompts import Prompt

WIDTH = 2  # bytes of a weight
TOKENS = 256  # in one pass: with fewer, the weights are read more often


class NativeText:
    """The weights of `model` as they are now, laid out for the native decoder, for texts of at most
    `length` tokens. Raises CompilerError: the decoder cannot be built here; ValueError: the decoder
    does not run the model. `hidden`: states [1, L, d] behind the final norm, in bfloat16, of the
    text read last."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, length: int) -> None:
        if why := _refusal(model, length):
            raise ValueError(why)
        self.model, self.native = model, NativeModel(model, sparse=False)
        self.config, self.generation_config = model.config, model.generation_config
        self.instructions = self.native.instructions
        self.hidden = torch.empty(1, 0, self.native.width, dtype=torch.bfloat16)

    def logits(self, ids: Tensor) -> Tensor:
        """Of token ids [L], each after those before it: [1, L, V] float32."""
        hidden, logits = self.native.read_text(ids, TOKENS)
        self.hidden = hidden[None]
        return logits[None]

    def head(self, hidden: Tensor) -> Tensor:
        """The logits [1, n, V] of `hidden` [1, n, d]: those of the pass they come from."""
        return self.native.logits(hidden[0])[None]


TextModel: TypeAlias = PreTrainedModel | NativeText


def _refusal(model: PreTrainedModel, length: int) -> str:
    """Why the native decoder does not read such texts by this model; "" if it does."""
    if is_streamed(model):
        return "the blocks are read from disk"
    if length > (stable := stable_context(model.config.get_text_config())):
        return f"rotary frequencies change after {stable} tokens"
    if 2 * WIDTH * sum(p.numel() for p in model.parameters()) > memory_available():  # to be safe
        return "there is no memory for the weights in its layout"
    return unsupported(model, torch.bfloat16)


def text_model(model: PreTrainedModel, precision: str, length: int) -> tuple[TextModel, str]:
    """What reads texts of `length` tokens by `model` as it is now, and how and why, in words.
    `precision`: float32 for the model itself; auto for the native decoder where it runs the model
    and is the faster of the two."""
    own = f"PyTorch, {str(model.dtype).removeprefix('torch.')}"
    if precision != "auto":
        return model, own
    try:
        if why := _refusal(model, length):
            raise ValueError(why)
        faster, words = reading_speeds().compared(str(model.dtype).removeprefix("torch."))
        if not faster:
            return model, f"{own}; {words} here"
        native = NativeText(model, length)
        return native, f"native, bfloat16 ({native.instructions}); {words} here"
    except (CompilerError, ValueError, MemoryError) as error:
        return model, f"{own}; the native decoder does not run here: {error}"


def passes(
    model: TextModel, input_ids: Tensor, batch: int, new: NewBatches, tick: Callable[[float], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids [b, L] and their logits [b, L, V], pass by pass, of `input_ids` [N, L]; see
    `each_logits`. The native decoder reads one row at a time, whatever the batch."""
    if isinstance(model, NativeText):
        for done, ids in enumerate(input_ids):
            tick(done / len(input_ids))
            yield ids[None], model.logits(ids)
        return tick(1.0)
    logits = each_logits(model, input_ids, batch, new, tick)
    yield from zip(input_ids.split(batch), logits, strict=True)


def written(
    model: TextModel, prompts: Sequence[Sequence[int]], ends: Collection[int], limit: int
) -> Iterator[tuple[int, int]]:
    """The likeliest tokens behind each of `prompts` up to one of `ends`: number of the prompt and
    token. The native decoder writes all texts in turn, as one pass reads the weights for all;
    PyTorch writes one after the other."""
    if isinstance(model, NativeText):
        requests = [GenerationRequest(tuple(p), limit, ends=frozenset(ends)) for p in prompts]
        target = TargetModel(model.model, model.native)
        for number, step in answers(target, requests):
            yield from ((number, token) for token in step.tokens if token not in ends)
        return
    for number, prompt in enumerate(prompts):
        tokens = takewhile(lambda token: token not in ends, greedy(model, prompt))
        yield from ((number, token) for token in islice(tokens, limit))


def logits_of(model: TextModel, rows: Tensor, hidden: Tensor) -> Tensor:
    """Logits [b, n, V] of token ids [b, n], given what `passes` have left behind the blocks."""
    if isinstance(model, NativeText):
        return model.head(hidden)
    return after_blocks(model, rows, hidden)


@dataclass(frozen=True)
class GreedySample:
    """The text a model generated for a prompt."""

    prompt: str
    tokens: tuple[int, ...]  # ids, without the end-of-text token
    text: str  # the decoded tokens


def write_samples(
    model: TextModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    tokens: int,
    reporter: Reporter,
) -> list[GreedySample]:
    """Generate greedy texts of at most `tokens` tokens each. Raises CancelledError: cancellation
    was requested."""
    texts, ends = [list[int]() for _ in prompts], end_ids(tokenizer, model.generation_config)
    asked = [prompt_ids(prompt.text, tokenizer) for prompt in prompts]
    for number, token in written(model, asked, ends, tokens):
        stop_if_asked(reporter)
        texts[number].append(token)
        reporter.progress(sum(map(len, texts)) / tokens, len(prompts), "Writing samples")
    return [
        GreedySample(prompt.text, tuple(text), str(tokenizer.decode(text)))
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def agreement(dense: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """Mean share of the longer text's tokens before the first difference; 1 for equal texts.
    `dense`, `other`: token ids of each prompt."""
    return fmean(
        same_start(a, b) / max(len(a), len(b), 1) if a != b else 1.0
        for a, b in zip(dense, other, strict=True)
    )
