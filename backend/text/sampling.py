"""Text from the model itself, where no corpus suits: ancestral sampling at temperature 1.

Drawn from the model's own distribution without any truncation, the text excites the layers much as
its training text did; LLM-QAT (Liu et al., 2023) makes its training data in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.errors import ComputeError
from backend.models.kv_cache import cache_name
from backend.reporter import Reporter, stop_if_asked

BATCH = 16  # windows written at once


def first_tokens(
    tokenizer: PreTrainedTokenizerBase, count: int, generator: torch.Generator
) -> Tensor:
    """First tokens [count, 1]: beginning-of-text, or any ordinary token where there is none."""
    if tokenizer.bos_token_id is not None:
        return torch.full((count, 1), tokenizer.bos_token_id)
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([t for t in range(len(tokenizer)) if t not in special])
    return ordinary[torch.randint(len(ordinary), (count, 1), generator=generator)]


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each row: [b, V] -> [b, 1], drawn on the CPU so that a seed means the same."""
    chances = logits.float().softmax(-1).cpu()
    if not chances.isfinite().all():
        raise ComputeError(
            "The model writes no text: its logits are not finite.",
            "Its weights overflow in this precision, or are damaged.",
            "Load it in another precision, or choose a calibration text.",
        )
    return torch.multinomial(chances, 1, generator=generator)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    segments: int,
    context: int,
    seed: int,
    reporter: Reporter,
) -> Tensor:
    """Windows [segments, context] int64 on the CPU; an end of text is followed by the next text.

    The same model and seed give the same ids.

    Raises:
        ComputeError: the logits are not finite.
        CancelledError: cancellation was requested.
    """
    generator = torch.Generator().manual_seed(seed)
    name = cache_name(model)
    rows = first_tokens(tokenizer, segments, generator).repeat(1, context)
    for number, batch in enumerate(rows.split(BATCH)):  # views: filled in place
        cache = None
        for column in range(1, context):
            stop_if_asked(reporter)
            given = batch[:, column - 1 : column].to(model.device)
            output = model(input_ids=given, use_cache=True, **{name: cache})
            cache = output[name]
            batch[:, column : column + 1] = _draw(output.logits[:, -1], generator)
            done = number * BATCH * context + len(batch) * (column + 1)
            reporter.progress(done, rows.numel(), "Sampling calibration text")
    return rows
