"""Divergence of a model's predictions from those of its dense original.

On the evaluation windows, at every predicted position t, with p the next-token distribution of the
dense model and q that of the compressed model:

    KL_t = sum_v p_v (log p_v - log q_v)    in nats,    agreement_t = [argmax p = argmax q]

averaged over all positions; standard errors are over the means of the windows. Logits would take
too much memory, so the output of the dense model's last block (with the native decoder, of its
final norm) is stored, and the remaining norm and head are applied again. Parameters outside the
blocks must therefore be equal in both models; compare `outside_blocks`."""

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

POSITIONS = 64  # positions per pass through the head
CACHED = 16  # positions to compare at a time; their distributions fit in a core's cache


@dataclass(frozen=True)
class Divergence:
    """Divergence of a model from the dense model.

    Attributes:
        kl: mean KL divergence in nats per token.
        kl_stderr: its standard error over windows; None for a single window.
        agreement: share of positions with the same top-1 token.
        agreement_stderr: its standard error over windows; None for a single window.
        tokens: number of compared positions.
    """

    kl: float
    kl_stderr: float | None
    agreement: float
    agreement_stderr: float | None
    tokens: int


@torch.no_grad()
def outside_blocks(model: PreTrainedModel) -> str:
    """SHA-256 in hex of all parameters outside the decoder blocks: embeddings, final norm, head."""
    block_parameters = {id(p) for p in decoder_blocks(model).parameters()}
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if id(parameter) not in block_parameters:
            digest.update(f"{name} {list(parameter.shape)}\n".encode())
            digest.update(parameter.float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def summed_kl(p: Tensor, q: Tensor) -> Tensor:
    """Sum over positions of the KL divergence, for each window.

    Args:
        p: logits or log-probabilities [b, L, V] of the dense model.
        q: the same for the compressed model.

    Returns:
        [b], float64, on the CPU.
    """
    sums = p.new_zeros(len(p), dtype=torch.float64)
    for parts in zip(p.split(CACHED, 1), q.split(CACHED, 1), strict=True):
        log_p, log_q = (x.float().log_softmax(-1) for x in parts)
        terms = functional.kl_div(log_q, log_p, reduction="none", log_target=True)
        sums += terms.sum(-1).double().sum(1)
    return sums.cpu()


class DenseOutputs:
    """Recorded outputs of the last block of the dense model.

    Attributes:
        states: one tensor per forward pass.
        outside: `outside_blocks` of the dense model; empty before the first recording.
        native: True if the native decoder ran the dense model. It must then run the compared
            models, too.
    """

    def __init__(self, new_batches: NewBatches = list) -> None:
        self.states: HiddenStates = new_batches()
        self.outside, self.native = "", False
        self._new_batches = new_batches

    @contextmanager
    def recording(self, model: TextModel) -> Iterator[Observe]:
        """Yield an observer for `perplexity` that records the forward passes of `model`."""
        last_output: list[Tensor] = []
        self.states, self.native = self._new_batches(), isinstance(model, NativeText)
        self.outside = outside_blocks(model.model if isinstance(model, NativeText) else model)
        if isinstance(model, NativeText):
            return (yield lambda rows, logits: self.states.append(model.hidden))

        def record(_block: Any, _args: Any, output: Tensor) -> None:
            last_output[:] = [output]

        hook = decoder_blocks(model)[-1].register_forward_hook(record)
        try:
            yield lambda rows, logits: self.states.append(last_output[0])
        finally:
            hook.remove()


class DivergenceObserver:
    """Observer of `perplexity` that compares a model with the recorded dense model.

    Args:
        model: compressed model with the embeddings, final norm and head of the dense model.
        reference: outputs recorded on the same token ids in the same batches.
    """

    def __init__(self, model: TextModel, reference: DenseOutputs) -> None:
        self._model, self._states = model, iter(reference.states)
        self._same_decoder = reference.native == isinstance(model, NativeText)
        self._kl: list[Tensor] = []
        self._agreement: list[Tensor] = []
        self._positions = 0

    @torch.no_grad()
    def __call__(self, rows: Tensor, logits: Tensor) -> None:
        """Add one forward pass.

        Args:
            rows: token ids [b, L].
            logits: [b, L, V].

        Raises:
            ValueError: the reference was recorded with other batches or another decoder.
        """
        hidden = next(self._states, None)
        if hidden is None or hidden.shape[:2] != rows.shape or not self._same_decoder:
            raise ValueError("the reference was recorded with other batches or another decoder")
        positions = rows.shape[1] - 1
        kl, agreements = torch.zeros(2, len(rows), dtype=torch.float64)
        for start in range(0, positions, POSITIONS):
            part = slice(start, min(start + POSITIONS, positions))
            p = logits_of(self._model, rows[:, part].to(logits.device), hidden[:, part])
            q = logits[:, part]
            kl += summed_kl(p, q)
            agreements += (p.argmax(-1) == q.argmax(-1)).double().sum(1).cpu()
        self._kl.append(kl / positions)
        self._agreement.append(agreements / positions)
        self._positions += positions * len(rows)

    def result(self) -> Divergence:
        """Means over all forward passes so far.

        Raises:
            ComputeError: the divergence is not finite.
        """
        kl, agreement = torch.cat(self._kl), torch.cat(self._agreement)
        if not kl.isfinite().all():
            raise ComputeError(
                "The divergence from the dense model is not finite.",
                "The model's logits overflowed, or gave a token a probability of 0.",
                "Use a higher precision or a lower compression.",
            )
        return Divergence(
            kl.mean().item(),
            stderr(kl),
            agreement.mean().item(),
            stderr(agreement),
            self._positions,
        )
