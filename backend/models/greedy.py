"""Greedy decoding, one token at a time."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from backend.models.kv_cache import cache_name


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Sequence[int]) -> Iterator[int]:
    """Yield greedy tokens after the ids of a prompt, without end, with the model's own cache."""
    name, cache = cache_name(model), None
    given = torch.tensor([[*prompt]], device=model.device)
    while True:
        output = model(input_ids=given, use_cache=True, **{name: cache})
        cache = output[name]
        given = output.logits[:, -1:].argmax(-1)
        yield int(given)
