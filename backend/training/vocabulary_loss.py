"""Losses over a vocabulary, a few positions at a time.

The distributions of whole sequences are read from memory and written to it at every step of a
softmax, forward and backward; those of a few positions stay in a core's cache. The gradient by the
logits is computed with the loss, in their precision, so that nothing in float32 of their size is
kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

POSITIONS = {"cpu": 32}  # judged at once
ELSEWHERE = 1024

# logits [p, V] float32 of some positions, and which these are -> summed loss
Judge = Callable[[Tensor, slice], Tensor]


def summed_loss(logits: Tensor, judge: Judge) -> Tensor:
    """The sum of what `judge` returns for all positions of `logits` [n, V], float32; its gradient
    can be taken once."""
    loss: Tensor = _ByParts.apply(logits, judge)
    return loss


class _ByParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, judge: Judge) -> Tensor:
        learns, total = ctx.needs_input_grad[0], logits.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(logits if learns else total)
        count = POSITIONS.get(logits.device.type, ELSEWHERE)
        for start in range(0, len(logits), count):
            rows = slice(start, start + count)
            part = logits[rows].detach().float().requires_grad_(learns)
            with torch.set_grad_enabled(learns):
                loss = judge(part, rows)
            if learns:
                (gradient[rows],) = torch.autograd.grad(loss, part)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(slope), None
