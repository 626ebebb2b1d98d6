"""Perplexity compared with the loss of transformers and with closed forms."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from backend.calibration import heldout
from backend.errors import CancelledError, ComputeError
from backend.evaluation.perplexity import perplexity, window_nlls
from backend.models.block_forward import batches_in
from backend.models.loading import load
from backend.reporter import SilentReporter
from tests.evaluation.conftest import CONFIGS, VOCABULARY, text_of
from tests.toy_layers import Recorder


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(VOCABULARY, (7, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()


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
    bounded = perplexity(model, text_of(rows), 7)
    assert bounded.value == pytest.approx(reference.value, rel=1e-6)
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
