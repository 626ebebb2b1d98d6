"""Divergence of a model's predictions from those of its dense original.

On the evaluation windows, at every predicted position t, with p the dense model's distribution of
the next token and q the other model's:

    KL_t = sum_v p_v (log p_v - log q_v)    in nats,    agreement_t = [argmax p = argmax q]

and their means over all positions; the standard error is that of the windows' means. Perplexity
asks whether the model predicts a text well, these ask whether it still is the same model: it may
predict a text as well and say other things.

The dense logits are not kept: a vocabulary is about a hundred times wider than a hidden state. Kept
is what the dense model's last block puts out (in memory, or in a file); final norm and head make
logits of it again, `POSITIONS` at a time. So whatever is outside of the blocks must be the same in
both models, which holds for every method here; `outside_blocks` tells.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from backend.errors import ComputeError
from backend.evaluation.perplexity import Observe
from backend.models.block_forward import after_blocks
from backend.models.blocks import decoder_blocks
from backend.models.hidden_states import HiddenStates, NewBatches

POSITIONS = 64  # whose distributions [b, POSITIONS, V] are compared in float32 at a time


@dataclass(frozen=True)
class Divergence:
    """Divergence of a model from the dense one.

    Attributes:
        kl: nats per token, mean over all positions; `kl_stderr`: over windows, None with one.
        agreement: share of positions with the same likeliest token; `agreement_stderr` likewise.
        tokens: positions compared.
    """

    kl: float
    kl_stderr: float | None
    agreement: float
    agreement_stderr: float | None
    tokens: int


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


class DenseOutputs:
    """Outputs of the last block of the dense model, pass by pass.

    Attributes:
        outside: of the dense model, see `outside_blocks`; empty before anything is recorded.
    """

    def __init__(self, new: NewBatches = list) -> None:
        self.states: HiddenStates = new()
        self.outside = ""
        self._new = new

    @contextmanager
    def recording(self, model: PreTrainedModel) -> Iterator[Observe]:
        """Inside, what is given to `perplexity` as observer records the passes of `model`."""
        latest: list[Tensor] = []
        self.states, self.outside = self._new(), outside_blocks(model)

        def see(_block: Any, _args: Any, output: Tensor) -> None:
            latest[:] = [output]

        hook = decoder_blocks(model)[-1].register_forward_hook(see)
        try:
            yield lambda rows, logits: self.states.append(latest[0])
        finally:
            hook.remove()


class DivergenceObserver:
    """Compares the passes of a model with those of the dense one; an observer of `perplexity`.

    Args:
        model: with the embeddings, final norm and head of the dense model.
        reference: recorded on the same ids in the same batches.
    """

    def __init__(self, model: PreTrainedModel, reference: DenseOutputs) -> None:
        self._model, self._states = model, iter(reference.states)
        self._kl: list[Tensor] = []
        self._same: list[Tensor] = []
        self._positions = 0

    @torch.no_grad()
    def __call__(self, rows: Tensor, logits: Tensor) -> None:
        """Take one pass: ids [b, L] and logits [b, L, V].

        Raises:
            ValueError: the reference was recorded in other passes.
        """
        hidden = next(self._states, None)
        if hidden is None or hidden.shape[:2] != rows.shape:
            raise ValueError("the reference was recorded in other passes")
        last = rows.shape[1] - 1
        kl, same = torch.zeros(2, len(rows), dtype=torch.float64)
        for start in range(0, last, POSITIONS):
            part = slice(start, min(start + POSITIONS, last))
            dense = after_blocks(self._model, rows[:, part].to(logits.device), hidden[:, part])
            p, q = (x.float().log_softmax(-1) for x in (dense, logits[:, part]))
            divergence = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
            kl += divergence.double().sum(1).cpu()
            same += (p.argmax(-1) == q.argmax(-1)).double().sum(1).cpu()
        self._kl.append(kl / last)
        self._same.append(same / last)
        self._positions += last * len(rows)

    def result(self) -> Divergence:
        """The means over all recorded passes.

        Raises:
            ComputeError: they are not finite.
        """
        kl, same = torch.cat(self._kl), torch.cat(self._same)
        if not kl.isfinite().all():
            raise ComputeError(
                "The divergence from the dense model is not finite.",
                "The model's logits overflowed, or give a token no chance at all.",
                "Use a wider precision, or a gentler compression.",
            )
        return Divergence(
            kl.mean().item(), _stderr(kl), same.mean().item(), _stderr(same), self._positions
        )


def _stderr(means: Tensor) -> float | None:
    return means.std().item() / math.sqrt(len(means)) if len(means) > 1 else None
