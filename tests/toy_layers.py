"""A toy model, text it knows, and layers whose inputs are correlated as real ones are."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputStatistics
from backend.metric_key import MetricKey
from backend.models.block_forward import open_stream, run_block
from backend.models.blocks import decoder_blocks
from backend.models.loading import load
from backend.models.sources.toy.stories import stories
from backend.reporter import SilentReporter
from backend.statistics.tensors import TensorSnapshot


@dataclass
class Layer:
    """A dense weight [out, in] and inputs X [in, N] with a few dominant directions."""

    W: Tensor
    X: Tensor

    @property
    def inputs(self) -> InputStatistics:
        H = self.X @ self.X.T / self.X.shape[1]
        return InputStatistics(self.X.shape[1], H.diagonal(), H, mean=self.X.mean(1))

    def error(self, W: Tensor) -> float:
        """Mean over tokens of the squared change of the outputs, straight from X."""
        return (((W - self.W) @ self.X) ** 2).sum().item() / self.X.shape[1]

    def best_on(self, mask: Tensor) -> Tensor:
        """Least-squares solution of each row on its mask, in float64."""
        W, H = self.W.double(), self.inputs.gram.double()
        best = torch.zeros_like(W)
        for row, keep in enumerate(mask):
            on = keep.nonzero().flatten()
            best[row, on] = torch.linalg.solve(H[on][:, on], H[on] @ W[row])
        return best.float()


@pytest.fixture
def make_layer() -> Callable[..., Layer]:
    def make(rows: int = 12, columns: int = 32, tokens: int = 400, seed: int = 0) -> Layer:
        random = torch.Generator().manual_seed(seed)
        mix = torch.randn(columns, columns, generator=random) / columns**0.5
        mix[:, :4] *= 4
        X = (mix + torch.eye(columns)) @ torch.randn(columns, tokens, generator=random)
        return Layer(torch.randn(rows, columns, generator=random) * 0.1, X)

    return make


@pytest.fixture
def layer(make_layer: Callable[..., Layer]) -> Layer:
    return make_layer()


@dataclass
class Recorder(SilentReporter):
    """Keeps all it is told; asks to stop once `stops` finished checkpoints were announced."""

    progressed: list[tuple[float, float, str]] = field(default_factory=list)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)  # curve -> what its steps count
    snapshots: list[TensorSnapshot] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    stop: "Callable[[Recorder], bool]" = lambda _: False

    def progress(self, done: float, total: float, stage: str) -> None:
        self.progressed.append((done, total, stage))

    def metric(self, key: MetricKey, value: float, step: int) -> None:
        self.axes[str(key)] = key.axis
        self.metrics.append((str(key), value, step))

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        self.snapshots.append(snapshot)

    def log(self, text: str) -> None:
        self.lines.append(text)

    def should_stop(self) -> bool:
        return self.stop(self)


@pytest.fixture
def recorder() -> Callable[..., Recorder]:
    return Recorder


@pytest.fixture(scope="session")
def _toy() -> tuple[PreTrainedModel, Tensor]:
    loaded = load("toy")
    tokens = [t for s in stories(7, 800) for t in (0, *loaded.tokenizer.encode(s))]
    return loaded.model, torch.tensor(tokens[: 160 * 128]).view(160, 128)


@pytest.fixture
def toy(_toy: tuple[PreTrainedModel, Tensor]) -> Callable[[], PreTrainedModel]:
    """Makes fresh copies of the dense toy model."""
    return lambda: deepcopy(_toy[0])


def block_outputs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Hidden states [N, L, d] after the last block, before the final norm."""
    stream = open_stream(model, ids, len(ids))
    hidden = stream.hidden
    for block in range(len(decoder_blocks(model))):
        hidden = run_block(model, stream, block, hidden)
    return next(iter(hidden))


@pytest.fixture
def calibration(_toy: tuple[PreTrainedModel, Tensor]) -> Tensor:
    """[96, 128] token ids."""
    return _toy[1][:96]


@pytest.fixture
def unseen(_toy: tuple[PreTrainedModel, Tensor]) -> Tensor:
    """[64, 128] token ids that share no story with the calibration text."""
    return _toy[1][96:]
