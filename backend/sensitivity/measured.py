"""Measured sensitivity: loss and divergence when one layer alone is changed.

The block of the layer is run from its stored dense inputs with the changed weights, and the rest of
the network behind it, several candidates a batch:

    KL = mean_t sum_v p_tv (log p_tv - log q_tv)       p dense, q changed; nats a token
    loss = mean_t -log q_t(x_t+1)  -  the same of p

KL is never negative and has less noise than the difference of losses, and both agree in expectation
where the text is as the model would write it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.calibration.heldout import window_nll
from backend.evaluation.divergence import summed_kl
from backend.models.block_forward import Call, after_blocks, block_of_weights
from backend.sensitivity.trace import DenseTrace


@dataclass(frozen=True)
class Sensitivity:
    """What one change costs, nats a token."""

    kl: float
    loss: float


class SensitivityMeter:
    """Measures candidates on the first windows of a trace. `windows`: how many. `batch`: candidates
    that go through the rest of the network together."""

    def __init__(self, dense: DenseTrace, windows: int, batch: int) -> None:
        self._dense, self._windows = dense, min(windows, len(dense.ids))
        self._batch = batch if _broadcasts(dense) else 1
        self._reference = [self._logits(w, hidden) for w, hidden in self._outputs()]

    def _outputs(self) -> list[tuple[int, Tensor]]:
        return [(w, hidden) for w, hidden in enumerate(self._dense.inputs[-1]) if w < self._windows]

    def _logits(self, window: int, hidden: Tensor) -> Tensor:
        """[candidates, L, V]."""
        rows = self._dense.ids[window : window + 1].to(hidden.device).expand(len(hidden), -1)
        with torch.no_grad():
            return after_blocks(self._dense.model, rows, hidden)

    @property
    def dense_loss(self) -> float:
        """Mean loss of the dense model, nats a token."""
        losses = [self._loss(w, logits).item() for w, logits in enumerate(self._reference)]
        return sum(losses) / len(losses)

    def _loss(self, window: int, logits: Tensor) -> Tensor:
        """Mean loss of each candidate, for its logits [candidates, L, V]."""
        return window_nll(logits, self._dense.ids[window].expand(len(logits), -1))

    @torch.no_grad()
    def measure(self, block: int, candidates: Sequence[Mapping[str, Tensor]]) -> list[Sensitivity]:
        """Each candidate: module name in `block` -> its weights [out, in]."""
        sums = torch.zeros(len(candidates), 2, dtype=torch.float64)
        for window, states in enumerate(self._dense.inputs[block]):
            if window == self._windows:
                break
            for start in range(0, len(candidates), self._batch):
                part = slice(start, start + self._batch)
                hidden = self._changed(block, window, states, candidates[part])
                hidden = self._rest(block, window, hidden)
                sums[part] += self._compared(window, self._logits(window, hidden))
        return [Sensitivity(*mean) for mean in (sums / self._windows).tolist()]

    @torch.no_grad()
    def measure_model(self) -> Sensitivity:
        """The model as it is now, with weights changed outside of its blocks."""
        total = torch.zeros(1, 2, dtype=torch.float64)
        for window in range(self._windows):
            rows = self._dense.ids[window : window + 1].to(self._dense.model.device)
            logits = self._dense.model(input_ids=rows, use_cache=False).logits
            total += self._compared(window, logits)
        return Sensitivity(*(total[0] / self._windows).tolist())

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

    def _compared(self, window: int, logits: Tensor) -> Tensor:
        """KL and loss [candidates, 2] of their logits [candidates, L, V]."""
        dense = self._reference[window]
        kl = summed_kl(dense.expand_as(logits), logits) / dense.shape[1]
        return torch.stack([kl, self._loss(window, logits) - self._loss(window, dense)], 1)


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
