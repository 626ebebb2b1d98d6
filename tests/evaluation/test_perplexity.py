"""Perplexity compared with the loss of transformers and with closed forms; computed sizes compared
with the bytes of written formats."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backend.calibration import heldout
from backend.errors import CancelledError, ComputeError
from backend.evaluation.acceleration import compact_bytes, max_nonzero_per_group, sizes
from backend.evaluation.perplexity import perplexity, window_nlls
from backend.models.block_forward import batches_in
from backend.models.loading import load
from backend.pruning.masks import keep_mask
from backend.pruning.pattern import Pattern
from backend.reporter import SilentReporter
from tests.evaluation.conftest import VOCABULARY, built, text_of
from tests.toy_layers import Recorder


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(VOCABULARY, (7, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest):
    return built(request.param)


def own_losses(model, rows: torch.Tensor) -> list[float]:
    with torch.no_grad():
        return [model(input_ids=row[None], labels=row[None]).loss.item() for row in rows]


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_perplexity_equals_the_loss_of_transformers(model, rows: torch.Tensor, batch: int) -> None:
    actual = perplexity(model, text_of(rows), batch)
    losses = own_losses(model, rows)
    mean = sum(losses) / len(losses)
    assert actual.value == pytest.approx(math.exp(mean), rel=1e-5)
    assert actual.tokens == 7 * 39
    nlls = window_nlls(model, rows, batch, SilentReporter())
    assert nlls.tolist() == pytest.approx(losses, rel=1e-5)


def test_the_standard_error_follows_the_delta_method(model, rows: torch.Tensor) -> None:
    actual = perplexity(model, text_of(rows), 4)
    losses = own_losses(model, rows)
    mean = sum(losses) / 7
    spread = math.sqrt(sum((x - mean) ** 2 for x in losses) / 6 / 7)
    assert actual.stderr == pytest.approx(math.exp(mean) * spread, rel=1e-3)
    assert perplexity(model, text_of(rows[:1]), 4).stderr is None


def test_memory_limits_do_not_change_the_result(
    model, rows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = perplexity(model, text_of(rows), 7)
    monkeypatch.setattr(heldout, "POSITIONS", 6)
    monkeypatch.setattr(heldout, "MAX_LOGITS", 2 * 40 * VOCABULARY + 1)
    sizes: list[int] = []
    model.register_forward_hook(lambda _, __, output: sizes.append(output.logits.numel()))
    assert perplexity(model, text_of(rows), 7).value == pytest.approx(reference.value, rel=1e-6)
    assert len(sizes) == 4 and max(sizes) == 2 * 40 * VOCABULARY


def test_a_16_bit_model_is_summed_in_float32(model, rows: torch.Tensor) -> None:
    wide = perplexity(model, text_of(rows), 4)
    narrow = perplexity(model.to(torch.bfloat16), text_of(rows), 4)
    assert math.log(narrow.value) == pytest.approx(math.log(wide.value), rel=0.03)
    assert narrow.value != wide.value


def test_overflow_is_reported(model, rows: torch.Tensor) -> None:
    model.get_output_embeddings().weight.data[:] = torch.nan
    with pytest.raises(ComputeError, match="not finite"):
        perplexity(model, text_of(rows), 4)


def test_progress_is_reported_and_a_run_can_stop(model, rows: torch.Tensor) -> None:
    reporter = Recorder()
    perplexity(model, text_of(rows), 3, reporter)
    assert [recorded[:2] for recorded in reporter.progressed] == [(0, 7), (3, 7), (6, 7), (7, 7)]
    reporter = Recorder(stop=lambda recorded: len(recorded.progressed) >= 2)
    with pytest.raises(CancelledError):
        perplexity(model, text_of(rows), 3, reporter)
    assert len(reporter.progressed) == 2


@pytest.mark.parametrize("batch", [2, 7])
def test_a_streamed_model_has_the_same_perplexity(batch: int, tmp_path: Path) -> None:
    """Results are equal bit for bit, with hidden states in memory and on disk."""
    rows = torch.randint(400, (7, 40), generator=torch.Generator().manual_seed(0))
    reference = perplexity(load("toy").model, text_of(rows), batch)
    streamed = load("toy", streamed=True).model
    for new in (list, batches_in(tmp_path)):
        assert perplexity(streamed, text_of(rows), batch, new_batches=new) == reference


def sparse(rows: int, columns: int, share: float, seed: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=dice)
    return W * (torch.rand(rows, columns, generator=dice) >= share)


def written(W: Tensor) -> int:
    """Size in bytes of a bitmask and of its values."""
    nonzero = W.bfloat16() != 0
    values = W.bfloat16()[nonzero].view(torch.int16).numpy()
    return len(np.packbits(nonzero.numpy().reshape(-1)).tobytes()) + len(values.tobytes())


@given(st.integers(1, 17), st.integers(1, 19), st.floats(0, 1), st.integers(0, 99))
def test_a_bitmask_has_the_computed_size(rows: int, columns: int, share: float, seed: int) -> None:
    W = sparse(rows, columns, share, seed)
    assert sizes([W]).bitmask == written(W)


@pytest.mark.parametrize(
    ("keep", "group", "bits"), [(2, 4, 2), (4, 8, 3), (1, 2, 1), (1, 4, 2), (3, 5, 3)]
)
def test_a_compact_group_has_values_and_indices(keep: int, group: int, bits: int) -> None:
    groups = 40
    actual = compact_bytes(groups * group, keep, group)
    assert actual == groups * keep * 2 + groups * keep * bits / 8
    assert compact_bytes(64 * 4, 2, 4) / (2 * 64 * 4) == 9 / 16  # 2:4


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "50%", "90%"])
def test_the_sizes_of_a_model_are_the_sums_of_written_bytes(pattern: str) -> None:
    rule = Pattern.parse(pattern)
    matrices = [sparse(24, 32, 0.0, seed) for seed in range(3)]
    matrices = [W * keep_mask(W.abs(), rule) for W in matrices]
    actual = sizes(iter(matrices))
    assert actual.weights == 3 * 24 * 32 and actual.dense == 2 * actual.weights
    assert actual.bitmask == sum(map(written, matrices))
    assert actual.zero_share == sum((W == 0).sum().item() for W in matrices) / actual.weights
    assert actual.pattern == ((rule.keep, rule.group) if rule.structured else None)
    if rule.structured:
        assert actual.compact == compact_bytes(actual.weights, rule.keep, rule.group)
        assert actual.compact < actual.dense


def test_a_matrix_that_breaks_the_pattern_changes_the_pattern_of_the_model() -> None:
    W = sparse(4, 8, 0.0, 0)
    pruned = W * torch.tensor([1, 0, 0, 1] * 2)
    assert (
        max_nonzero_per_group(W, 4),
        max_nonzero_per_group(pruned, 4),
        max_nonzero_per_group(pruned[:, :6], 4),
    ) == (4, 2, 4)
    assert sizes([pruned]).pattern == (2, 4) and sizes([pruned, W]).pattern is None
    assert sizes([torch.zeros(4, 8)]).compact is None
