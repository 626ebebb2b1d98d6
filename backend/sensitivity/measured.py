"""Measured sensitivity: loss and divergence when one layer alone is changed.

The block of the layer is run from its stored dense inputs with the changed weights, and the rest of
the network behind it, several candidates a batch:

    KL = mean_t sum_v p_tv (log p_tv - log q_tv)       p dense, q changed; nats a token
    loss = mean_t -log q_t(x_t+1)  -  the same of p

KL is never negative and has less noise than the difference of losses, and both agree in expectation
where the text is as the model would write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from backend.models.block_forward import Call, after_blocks, block_of_weights
from backend.sensitivity.trace import POSITIONS, DenseTrace


@dataclass(frozen=True)
class Sensitivity:
    """What one change costs, nats a token."""

    kl: float
    loss: float


class SensitivityMeter:
    """Measures candidates on the first windows of a trace.

    Args:
        windows: how many.
        batch: candidates that go through the rest of the network together.
    """

    def __init__(self, dense: DenseTrace, windows: int, batch: int) -> None:
        self._dense, self._windows = dense, min(windows, len(dense.ids))
        self._batch = batch if _broadcasts(dense) else 1
        self._reference = [self._log_probabilities(w, hidden) for w, hidden in self._outputs()]

    def _outputs(self) -> list[tuple[int, Tensor]]:
        return [(w, hidden) for w, hidden in enumerate(self._dense.inputs[-1]) if w < self._windows]

    def _log_probabilities(self, window: int, hidden: Tensor) -> Tensor:
        """[candidates, L, V]."""
        rows = self._dense.ids[window : window + 1].to(hidden.device).expand(len(hidden), -1)
        with torch.no_grad():
            return after_blocks(self._dense.model, rows, hidden).float().log_softmax(-1)

    @property
    def dense_loss(self) -> float:
        """Mean loss of the dense model, nats a token."""
        losses = [self._losses(w, p).mean().item() for w, p in enumerate(self._reference)]
        return sum(losses) / len(losses)

    def _losses(self, window: int, log_q: Tensor) -> Tensor:
        """Mean loss of each candidate, for its log-probabilities [candidates, L, V]."""
        targets = self._dense.ids[window, 1:].to(log_q.device).expand(len(log_q), -1)
        taken = log_q[:, :-1].gather(-1, targets.unsqueeze(-1))
        return -taken.squeeze(-1).mean(-1)

    @torch.no_grad()
    def measure(self, block: int, candidates: Sequence[Mapping[str, Tensor]]) -> list[Sensitivity]:
        """Each candidate: module name in `block` -> its weights [out, in]."""
        sums = [torch.zeros(2, dtype=torch.float64) for _ in candidates]
        for window, states in enumerate(self._dense.inputs[block]):
            if window == self._windows:
                break
            for start in range(0, len(candidates), self._batch):
                part = slice(start, start + self._batch)
                hidden = self._changed(block, window, states, candidates[part])
                hidden = self._rest(block, window, hidden)
                self._compare(sums[part], window, self._log_probabilities(window, hidden))
        means = [total / self._windows for total in sums]
        return [Sensitivity(mean[0].item(), mean[1].item()) for mean in means]

    @torch.no_grad()
    def measure_model(self) -> Sensitivity:
        """The model as it is now, with weights changed outside of its blocks."""
        total = torch.zeros(2, dtype=torch.float64)
        for window in range(self._windows):
            rows = self._dense.ids[window : window + 1].to(self._dense.model.device)
            logits = self._dense.model(input_ids=rows, use_cache=False).logits
            self._compare([total], window, logits.float().log_softmax(-1))
        return Sensitivity(*(total / self._windows).tolist())

    def _changed(
        self, block: int, window: int, states: Tensor, candidates: Sequence[Mapping[str, Tensor]]
    ) -> Tensor:
        call = self._dense.stream.calls[block][window]
        with block_of_weights(self._dense.model, self._dense.stream, block) as forward:
            return torch.cat([forward(weights, states, call) for weights in candidates])

    def _rest(self, block: int, window: int, hidden: Tensor) -> Tensor:
        for later in range(block + 1, self._dense.blocks):
            stream = self._dense.stream
            call: Call = stream.calls[later][window]
            with block_of_weights(self._dense.model, stream, later) as forward:
                hidden = forward({}, hidden, call)
        return hidden

    def _compare(self, sums: Sequence[Tensor], window: int, log_q: Tensor) -> None:
        """Add KL and loss of each candidate, of its log-probabilities [candidates, L, V]."""
        log_p = self._reference[window]
        losses = self._losses(window, log_q) - self._losses(window, log_p)
        for start in range(0, log_p.shape[1], POSITIONS):
            part = slice(start, start + POSITIONS)
            kl = functional.kl_div(
                log_q[:, part],
                log_p[:, part].expand_as(log_q[:, part]),
                reduction="none",
                log_target=True,
            )
            for total, one in zip(sums, kl.sum(-1).double().sum(-1), strict=True):
                total[0] += one.cpu() / log_p.shape[1]
        for total, loss in zip(sums, losses, strict=True):
            total[1] += loss.double().cpu()


def _broadcasts(dense: DenseTrace) -> bool:
    """Whether a block takes several rows with the arguments that were recorded for one."""
    first = next(iter(dense.inputs[0]))
    call = dense.stream.calls[0][0]
    try:
        with torch.no_grad(), block_of_weights(dense.model, dense.stream, 0) as forward:
            alone, both = forward({}, first, call), forward({}, torch.cat([first, first]), call)
    except RuntimeError:
        return False
    return both.shape[0] == 2 and torch.allclose(both[1], alone[0], rtol=1e-3, atol=1e-4)
