"""SparseGPT and Wanda as one would write them from the papers: slow, obvious, one layer at a time.

An oracle for the tests and the yardstick of `benchmarks.pruning`. Everything is float32, a segment
goes through a block alone, and every linear has a Hessian of its own:

    for each block:   run it once, watching what its linears read;   prune them;   run it again
    SparseGPT         H = 2 X X^T / segments, damped by 1 % of its mean diagonal; columns left to
                      right in blocks of 128; what a column lost is made up for by those after it
                      with the Cholesky factor of H^-1            (Frantar & Alistarh 2023)
    Wanda             |W| |x|; the lowest of each row, or of each group, go      (Sun et al. 2023)

A pattern is a share to drop (0.5) or (n, m): keep n of m. Needs torch alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Sparsity = float | tuple[int, int]
DAMPING, BLOCK = 0.01, 128


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` lowest of each row of `scores`; among equals the last ones."""
    order = scores.flip(1).sort(dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True).flip(1)


def lowest_by(scores: Tensor, sparsity: Sparsity) -> Tensor:
    """Mask of what goes: of each row, or of each group of m neighbors."""
    if isinstance(sparsity, tuple):
        keep, group = sparsity
        return lowest(scores.reshape(-1, group), group - keep).view_as(scores)
    return lowest(scores, int(scores.shape[1] * sparsity + 1e-6))


def wanda(W: Tensor, energy: Tensor, sparsity: Sparsity) -> Tensor:
    """W [out, in] pruned; `energy` [in]: sum of the squares of each input."""
    return W.masked_fill(lowest_by(W.abs() * energy.sqrt(), sparsity), 0.0)


def inverse_root(H: Tensor) -> Tensor:
    """U upper triangular with U^T U = H^-1."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)


def sparsegpt(W: Tensor, H: Tensor, sparsity: Sparsity) -> Tensor:
    """W [out, in] pruned under the Hessian H [in, in]."""
    W, H = W.clone(), H.clone()
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    H += DAMPING * H.diagonal().mean() * torch.eye(len(H))
    return sweep(W, inverse_root(H), sparsity)


def sweep(W: Tensor, U: Tensor, sparsity: Sparsity) -> Tensor:
    """The walk over the columns; changes W [out, in]. U [in, in]: `inverse_root`."""
    columns = W.shape[1]
    width = BLOCK - BLOCK % sparsity[1] if isinstance(sparsity, tuple) else BLOCK
    for a in range(0, columns, width):
        b = min(a + width, columns)
        part, root, lost = W[:, a:b].clone(), U[a:b, a:b], torch.zeros(len(W), b - a)
        drop = torch.zeros(part.shape, dtype=torch.bool)
        if isinstance(sparsity, float):
            scores = part**2 / root.diagonal() ** 2
            drop = lowest(scores.view(1, -1), int(scores.numel() * sparsity + 1e-6))
            drop = drop.view_as(part)
        for j in range(b - a):
            if isinstance(sparsity, tuple) and j % sparsity[1] == 0:
                group = slice(j, j + sparsity[1])
                scores = part[:, group] ** 2 / root.diagonal()[group] ** 2
                drop[:, group] = lowest_by(scores, sparsity)
            column = part[:, j].clone()
            pruned = column.masked_fill(drop[:, j], 0.0)
            lost[:, j] = (column - pruned) / root[j, j]
            part[:, j:] -= torch.outer(lost[:, j], root[j, j:])
            part[:, j] = pruned
        W[:, a:b] = part
        W[:, b:] -= lost @ U[a:b, b:]
    return W


class _Captured(Exception):  # noqa: N818 - control flow, no error
    """Block 0 was reached: its inputs are known."""


def block_inputs(model: Any, rows: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """What block 0 reads for each segment, and the other arguments (the same for all)."""
    states, others = list[Tensor](), dict[str, Any]()

    def capture(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs.pop("hidden_states"))
        others.update(kwargs)
        raise _Captured

    hook = model.model.layers[0].register_forward_pre_hook(capture, with_kwargs=True)
    for row in rows:
        with suppress(_Captured):
            model(input_ids=row[None], use_cache=False)
    hook.remove()
    return states, others


@torch.no_grad()
def prune(model: Any, rows: Tensor, method: str, sparsity: Sparsity) -> float:
    """Prunes a LLaMA-like model in place on token ids [segments, L], all of it float32.

    Returns:
        CPU seconds spent in solving: factors, columns, masks.
    """
    states, others = block_inputs(model, rows)
    solving = 0.0
    for block in model.model.layers:
        linears = [layer for layer in block.modules() if isinstance(layer, nn.Linear)]
        size = 1 if method == "wanda" else 2
        sums = {layer: torch.zeros((layer.in_features,) * size) for layer in linears}
        hooks = [layer.register_forward_pre_hook(partial(_add, sums, len(rows))) for layer in sums]
        _forward(block, states, others)
        for hook in hooks:
            hook.remove()
        start = time.process_time()
        solve: Callable[..., Tensor] = {"wanda": wanda, "sparsegpt": sparsegpt}[method]
        for layer in linears:
            layer.weight.data = solve(layer.weight.data, sums.pop(layer), sparsity)
        solving += time.process_time() - start
        states = _forward(block, states, others)
    return solving


def _forward(block: nn.Module, states: list[Tensor], others: dict[str, Any]) -> list[Tensor]:
    return [block(each, **others) for each in states]


def _add(
    sums: dict[nn.Linear, Tensor], segments: int, layer: nn.Linear, args: tuple[Tensor]
) -> None:
    X = args[0].flatten(0, -2).T
    if sums[layer].dim() == 2:
        sums[layer] += 2 / segments * (X @ X.T)
    else:
        sums[layer] += X.square().sum(1)
