"""Sample text of a model, compared with that of the dense model.

    agreement = mean_i (tokens before the first difference)_i / n_i    prompt i, n_i greedy tokens

It is 1 for equal texts, and stricter than the share of equal next tokens on a given text. With few
prompts it is an illustration, not a basis for ranking models."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from backend.decoding.benchmark import same_start
from backend.evaluation.native_text import TextModel, written
from backend.reporter import Reporter, stop_if_asked
from backend.text.chat_template import end_ids, prompt_ids
from backend.text.prompts import Prompt


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
