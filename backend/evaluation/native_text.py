"""Forward passes and greedy generation for evaluations, with the native decoder or PyTorch.

The native decoder reads texts if it is faster than PyTorch on this machine (`kernels.speeds`).
Weights and inputs of products are rounded to bfloat16; sums are float32.

Sample texts are compared with those of the dense model:

    agreement = mean_i (tokens before the first difference)_i / n_i    prompt i, n_i greedy tokens

The agreement is 1 for equal texts, and stricter than the share of equal next tokens on a given
text. With few prompts it is an illustration, not a basis for ranking models."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile
from statistics import fmean
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from backend.compiler import CompilerError
from backend.decoding.benchmark import same_start
from backend.decoding.native.families import stable_context, unsupported
from backend.decoding.native.model import NativeModel
from backend.decoding.serving.loop import answers
from backend.decoding.serving.request import GenerationRequest
from backend.decoding.target_model import TargetModel
from backend.kernels.speeds import KERNELS, PYTORCH, TOKENS, SpeedComparison, choose
from backend.models.block_forward import NewBatches, after_blocks, logit_batches
from backend.models.block_offload import is_streamed
from backend.models.kv_cache import greedy
from backend.models.memory import memory_available
from backend.reporter import Reporter, stop_if_asked
from backend.text.chat_template import end_ids, prompt_ids
from backend.text.prompts import Prompt

WEIGHT_BYTES = 2
MEASURED_MODEL: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 1,
    "vocab_size": 1536,
}
CHUNK_TOKENS = 256  # tokens per pass; with fewer, the weights are read more often


class NativeText:
    """Model that reads and writes texts with the native decoder, in bfloat16.

    It copies the current weights of `model`.

    Args:
        model: model to copy.
        length: maximum number of tokens of a text.

    Attributes:
        hidden: hidden states [1, L, d] after the final norm, bfloat16, of the last text.

    Raises:
        CompilerError: the decoder cannot be compiled on this machine.
        ValueError: the decoder does not support the model.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, length: int) -> None:
        if obstacle := _obstacle(model, length):
            raise ValueError(obstacle)
        self.model, self.native = model, NativeModel(model, sparse=False)
        self.config, self.generation_config = model.config, model.generation_config
        self.instructions = self.native.instructions
        self.hidden = torch.empty(1, 0, self.native.width, dtype=torch.bfloat16)

    def logits(self, ids: Tensor) -> Tensor:
        """Compute the logits [1, L, V], float32, of token ids [L]."""
        hidden, logits = self.native.read_text(ids, CHUNK_TOKENS)
        self.hidden = hidden[None]
        return logits[None]

    def head(self, hidden: Tensor) -> Tensor:
        """Compute the logits [1, n, V] of hidden states [1, n, d] after the final norm."""
        return self.native.logits(hidden[0])[None]


TextModel: TypeAlias = PreTrainedModel | NativeText


def _obstacle(model: PreTrainedModel, length: int) -> str:
    """Reason why the native decoder cannot read texts of `length` tokens with this model; empty if
    it can."""
    if is_streamed(model):
        return "the blocks are streamed from disk"
    if length > (stable := stable_context(model.config.get_text_config())):
        return f"rotary frequencies change after {stable} tokens"
    weights_bytes = WEIGHT_BYTES * sum(p.numel() for p in model.parameters())
    if 2 * weights_bytes > memory_available():  # with a safety factor of 2
        return "there is not enough memory for a copy of the weights"
    return unsupported(model, torch.bfloat16)


def text_model(model: PreTrainedModel, precision: str, length: int) -> tuple[TextModel, str]:
    """Choose the decoder for the current weights of `model`.

    Args:
        model: model to evaluate.
        precision: "float32" for PyTorch; "auto" for the native decoder if it supports the model and
            is faster on this machine.
        length: maximum number of tokens of a text.

    Returns:
        the model to run, and a description of its decoder, its precision and the reason.
    """
    in_pytorch = f"PyTorch, {str(model.dtype).removeprefix('torch.')}"
    if precision != "auto":
        return model, in_pytorch
    try:
        if why := _obstacle(model, length):
            raise ValueError(why)
        choice = reading_choice(model.dtype)
        if choice.fastest == PYTORCH:
            return model, f"{in_pytorch}; fastest here: {choice}"
        native = NativeText(model, length)
        return native, f"native, bfloat16 ({native.instructions}); fastest here: {choice}"
    except (CompilerError, ValueError, MemoryError) as error:
        return model, f"{in_pytorch}; the native decoder cannot run: {error}"


@lru_cache
def reading_choice(dtype: torch.dtype = torch.bfloat16) -> SpeedComparison:
    """Choose between the native decoder and PyTorch in `dtype`, by the time of a block and a head
    with the dimensions of SmolLM2-135M.

    Raises:
        CompilerError: the decoder cannot be compiled on this machine.
    """
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(LlamaConfig(**MEASURED_MODEL))
    native, ids = NativeText(model, TOKENS), torch.zeros(TOKENS, dtype=torch.long)

    model = model.to(dtype)

    @torch.no_grad()
    def in_pytorch() -> None:
        model(input_ids=ids[None])

    runs = {KERNELS: lambda: native.logits(ids), PYTORCH: in_pytorch}
    return choose(f"texts in {str(dtype).removeprefix('torch.')}", runs)


def forward_passes(
    model: TextModel,
    input_ids: Tensor,
    batch: int,
    new_batches: NewBatches,
    tick: Callable[[float], None],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run `model` on `input_ids` [N, L] and yield token ids [b, L] and logits [b, L, V] per pass.

    The native decoder reads one row at a time and ignores `batch`. See `logit_batches` for the
    arguments."""
    if isinstance(model, NativeText):
        for row, ids in enumerate(input_ids):
            tick(row / len(input_ids))
            yield ids[None], model.logits(ids)
        return tick(1.0)
    logits = logit_batches(model, input_ids, batch, new_batches, tick)
    yield from zip(input_ids.split(batch), logits, strict=True)


def greedy_tokens(
    model: TextModel, prompts: Sequence[Sequence[int]], ends: Collection[int], limit: int
) -> Iterator[tuple[int, int]]:
    """Generate greedily and yield (index of the prompt, token id).

    The native decoder generates all texts together, so that one pass over the weights serves all;
    PyTorch generates one text after another.

    Args:
        model: model to run.
        prompts: token ids of each prompt.
        ends: token ids that end a text, and are not yielded.
        limit: maximum number of tokens per text.
    """
    if isinstance(model, NativeText):
        requests = [GenerationRequest(tuple(p), limit, ends=frozenset(ends)) for p in prompts]
        target = TargetModel(model.model, model.native)
        for index, step in answers(target, requests):
            yield from ((index, token) for token in step.tokens if token not in ends)
        return
    for index, prompt in enumerate(prompts):
        tokens = takewhile(lambda token: token not in ends, greedy(model, prompt))
        yield from ((index, token) for token in islice(tokens, limit))


def logits_of(model: TextModel, rows: Tensor, hidden: Tensor) -> Tensor:
    """Compute the logits [b, n, V] of token ids [b, n] from recorded hidden states [b, n, d]: those
    after the final norm for the native decoder, those after the last block for PyTorch."""
    if isinstance(model, NativeText):
        return model.head(hidden)
    return after_blocks(model, rows, hidden)


@dataclass(frozen=True)
class GreedySample:
    """Text that a model generated for a prompt.

    Attributes:
        prompt: text of the prompt.
        tokens: generated token ids without the end-of-text token.
        text: decoded tokens.
    """

    prompt: str
    tokens: tuple[int, ...]
    text: str


def write_samples(
    model: TextModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    tokens: int,
    reporter: Reporter,
) -> list[GreedySample]:
    """Generate greedy texts of at most `tokens` tokens each.

    Raises:
        CancelledError: cancellation was requested.
    """
    texts, ends = [list[int]() for _ in prompts], end_ids(tokenizer, model.generation_config)
    ids = [prompt_ids(prompt.text, tokenizer) for prompt in prompts]
    for index, token in greedy_tokens(model, ids, ends, tokens):
        stop_if_asked(reporter)
        texts[index].append(token)
        reporter.progress(sum(map(len, texts)) / tokens, len(prompts), "Writing samples")
    return [
        GreedySample(prompt.text, tuple(text), str(tokenizer.decode(text)))
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def agreement(dense: Sequence[Sequence[int]], compressed: Sequence[Sequence[int]]) -> float:
    """Mean share of the tokens of the longer text before the first difference; 1 for equal texts.

    Args:
        dense: token ids that the dense model generated for each prompt.
        compressed: the same for the compressed model.
    """
    return fmean(
        same_start(a, b) / max(len(a), len(b), 1) if a != b else 1.0
        for a, b in zip(dense, compressed, strict=True)
    )
