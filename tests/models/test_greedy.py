"""Greedy decoding, token by token, is that of plain transformers."""

from __future__ import annotations

from itertools import islice

import torch

from backend.models.greedy import greedy
from backend.models.loading import load


def test_it_writes_what_generate_writes() -> None:
    model = load("toy").model
    prompt = [5, 17, 40, 9]
    given = torch.tensor([prompt])
    expected = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=25,
        eos_token_id=None,
    )[0, len(prompt) :]  # fmt: skip
    assert list(islice(greedy(model, prompt), 25)) == expected.tolist()


def test_two_streams_do_not_disturb_each_other() -> None:
    model = load("toy").model
    alone = list(islice(greedy(model, [5, 17]), 12))
    one, other = greedy(model, [5, 17]), greedy(model, [9, 40, 3])
    both = [(next(one), next(other)) for _ in range(12)]
    assert [token for token, _ in both] == alone
