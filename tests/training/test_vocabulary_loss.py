"""Losses in parts have the value and the gradient of the full loss."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from backend.training.trainer import POSITIONS, summed_loss

N, V = 2 * POSITIONS["cpu"] + 5, 40


def test_value_and_gradient_equal_those_of_all_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    full_logits = torch.randn(N, V, generator=generator).requires_grad_()
    labels = torch.randint(V, (N,), generator=generator)
    parts = full_logits.detach().clone().requires_grad_()

    def judge(logits: Tensor, at: slice) -> Tensor:
        return cross_entropy(logits, labels[at], reduction="sum")

    expected, actual = (
        cross_entropy(full_logits, labels, reduction="sum") / 7,
        summed_loss(parts, judge),
    )
    expected.backward()
    (actual / 7).backward()
    assert torch.allclose(actual / 7, expected, rtol=1e-6)
    assert torch.allclose(parts.grad, full_logits.grad, rtol=1e-5, atol=1e-8)


def test_the_gradient_has_the_precision_of_the_logits_and_is_optional() -> None:
    logits = torch.randn(N, V).bfloat16().requires_grad_()
    summed_loss(logits, lambda x, _: x.square().sum()).backward()
    assert torch.equal(logits.grad, 2 * logits.detach())
    with torch.no_grad():
        assert not summed_loss(logits, lambda x, _: x.square().sum()).requires_grad
