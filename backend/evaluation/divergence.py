"""Divergence of a model's predictions from those of its dense original.

On the evaluation windows, at every predicted position t, with p the next-token distribution of the
dense model and q that of the compressed model:

    KL_t = sum_v p_v (log p_v - log q_v)    in nats,    agreement_t = [argmax p = argmax q]

averaged over all positions; standard errors are those of the per-window means. The output of the
dense model's last block (of the native decoder, its final norm) is stored rather than its logits,
and what is left, norm and head, is applied to it again: parameters outside the blocks must be the
same in both; compare `outside_blocks`."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from backend.errors import ComputeError
from backend.evaluation.native_text import NativeText, TextModel, logits_of
from backend.evaluation.perplexity import Observe, stderr
from backend.models.block_forward import HiddenStates, NewBatches
from backend.models.blocks import decoder_blocks

POSITIONS = 64  # of a pass through the head
CACHED = 16  # compared at a time: their distributions fit in a core's cache


@dataclass(frozen=True)
class Divergence:
    """Divergence of a model from the dense model."""

    kl: float  # nats per token, mean over all positions
    kl_stderr: float | None  # over windows, None for one window
    agreement: float  # share of positions with the same top-1 token; `agreement_stderr` likewise
    agreement_stderr: float | None
    tokens: int  # number of positions compared


@torch.no_grad()
def outside_blocks(model: PreTrainedModel) -> str:
    """Hex sha256 of all parameters outside the decoder blocks: embeddings, final norm, head."""
    inside = {id(p) for p in decoder_blocks(model).parameters()}
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside:
            digest.update(f"{name} {list(parameter.shape)}\n".encode())
            digest.update(parameter.float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def summed_kl(p: Tensor, q: Tensor) -> Tensor:
    """sum_t KL_t of each window, for logits [b, L, V] of p and q, or their log-probabilities: [b]
    float64 on the CPU."""
    found = p.new_zeros(len(p), dtype=torch.float64)
    for parts in zip(p.split(CACHED, 1), q.split(CACHED, 1), strict=True):
        log_p, log_q = (x.float().log_softmax(-1) for x in parts)
        terms = functional.kl_div(log_q, log_p, reduction="none", log_target=True)
        found += terms.sum(-1).double().sum(1)
    return found.cpu()


class DenseOutputs:
    """Outputs of the last block of the dense model, one tensor per forward pass. `outside`:
    `outside_blocks` of the dense model; empty before the first recording. `native`: whether the
    native decoder read it, as it then has to read what is compared."""

    def __init__(self, new: NewBatches = list) -> None:
        self.states: HiddenStates = new()
        self.outside, self.native = "", False
        self._new = new

    @contextmanager
    def recording(self, model: TextModel) -> Iterator[Observe]:
        """Yield an observer for `perplexity` that records the forward passes of `model`."""
        latest: list[Tensor] = []
        self.states, self.native = self._new(), isinstance(model, NativeText)
        self.outside = outside_blocks(model.model if isinstance(model, NativeText) else model)
        if isinstance(model, NativeText):
            return (yield lambda rows, logits: self.states.append(model.hidden))

        def record(_block: Any, _args: Any, output: Tensor) -> None:
            latest[:] = [output]

        hook = decoder_blocks(model)[-1].register_forward_hook(record)
        try:
            yield lambda rows, logits: self.states.append(latest[0])
        finally:
            hook.remove()


class DivergenceObserver:
    """Observer of `perplexity` that compares a model with the recorded dense model. `model`: has
    the embeddings, final norm and head of the dense model. `reference`: recorded on the same token
    ids in the same batches."""

    def __init__(self, model: TextModel, reference: DenseOutputs) -> None:
        self._model, self._states = model, iter(reference.states)
        self._alike = reference.native == isinstance(model, NativeText)
        self._kl: list[Tensor] = []
        self._same: list[Tensor] = []
        self._positions = 0

    @torch.no_grad()
    def __call__(self, rows: Tensor, logits: Tensor) -> None:
        """Add one forward pass: ids [b, L] and logits [b, L, V]. Raises ValueError: the reference
        was recorded with other batches."""
        hidden = next(self._states, None)
        if hidden is None or hidden.shape[:2] != rows.shape or not self._alike:
            raise ValueError("the reference was recorded with other batches, or otherwise")
        last = rows.shape[1] - 1
        kl, same = torch.zeros(2, len(rows), dtype=torch.float64)
        for start in range(0, last, POSITIONS):
            part = slice(start, min(start + POSITIONS, last))
            p = logits_of(self._model, rows[:, part].to(logits.device), hidden[:, part])
            q = logits[:, part]
            kl += summed_kl(p, q)
            same += (p.argmax(-1) == q.argmax(-1)).double().sum(1).cpu()
        self._kl.append(kl / last)
        self._same.append(same / last)
        self._positions += last * len(rows)

    def result(self) -> Divergence:
        """The means over all forward passes so far. Raises ComputeError: the divergence is not
        finite."""
        kl, same = torch.cat(self._kl), torch.cat(self._same)
        if not kl.isfinite().all():
            raise ComputeError(
                "The divergence from the dense model is not finite.",
                "The model's logits overflowed, or assign a token zero probability.",
                "Use a higher precision or a lower compression.",
            )
        return Divergence(
            kl.mean().item(), stderr(kl), same.mean().item(), stderr(same), self._positions
        )
