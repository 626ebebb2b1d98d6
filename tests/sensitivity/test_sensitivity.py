"""Sensitivity of a layer compared with a computation without shortcuts."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backend.calibration.second_moments import InputCollector, InputStatistics, StatisticsLevel
from backend.models.block_forward import open_stream, run_block
from backend.models.blocks import block_linears
from backend.models.loading import LoadedModel, load
from backend.quantization.gptq import gptq, gptq_widths
from backend.quantization.plan import QuantSettings
from backend.reporter import SilentReporter
from backend.sensitivity.measured import DenseTrace, SensitivityMeter, measure_fisher, trace
from backend.sensitivity.profile import Format
from backend.sensitivity.walk import Solvers, candidates, energies, output_error

SILENT = SilentReporter()
MODULE = "mlp.down_proj"


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    loaded = load("toy", "cpu", torch.float32)
    loaded.model.requires_grad_(False)
    return loaded


@pytest.fixture(scope="module")
def ids(toy: LoadedModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(toy.facts.vocabulary, (4, 24), generator=generator)


@pytest.fixture(scope="module")
def dense(toy: LoadedModel, ids: Tensor) -> DenseTrace:
    dense_trace = trace(toy.model, ids, torch.float32, SILENT)
    measure_fisher(dense_trace, 3, SILENT)
    return dense_trace


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_kl_and_loss_equal_those_of_the_whole_model(
    toy: LoadedModel, ids: Tensor, dense: DenseTrace, batch: int
) -> None:
    linear = block_linears(toy.model, 1)[MODULE]
    trials = [linear.read() * scale for scale in (0.9, 0.5, 1.0)]
    measured = SensitivityMeter(dense, 2, batch).measure(1, [{MODULE: W} for W in trials])
    rows = ids[:2]
    log_p = toy.model(rows).logits.log_softmax(-1)
    for W, actual in zip(trials, measured, strict=True):
        changed = copy.deepcopy(toy.model)
        block_linears(changed, 1)[MODULE].write(W)
        log_q = changed(rows).logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        loss, before = (
            functional.nll_loss(x[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
            for x in (log_q, log_p)
        )
        assert actual.kl == pytest.approx(kl.item(), rel=1e-3, abs=1e-6)
        assert actual.loss == pytest.approx((loss - before).item(), rel=1e-3, abs=1e-6)
    assert measured[0].kl < measured[1].kl


def test_fisher_is_the_mean_squared_gradient_at_the_outputs(
    toy: LoadedModel, ids: Tensor, dense: DenseTrace
) -> None:
    """The reference samples the same labels and takes one backward pass through the entire
    model."""
    generator, total, outputs = torch.Generator().manual_seed(3), torch.zeros(()), list[Tensor]()
    layer = block_linears(toy.model, 1)[MODULE].layer
    hook = layer.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    layer.get_parameter("weight").requires_grad_()
    try:
        for row in ids.split(1):
            logits = toy.model(row).logits[0]
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
            loss = functional.cross_entropy(logits, labels[:, 0], reduction="sum")
            (gradient,) = torch.autograd.grad(loss, outputs.pop())
            total = total + gradient[0].square().sum(0)
    finally:
        hook.remove()
        layer.get_parameter("weight").requires_grad_(False)
    expected = total / ids.numel()
    assert {*dense.fisher} == {
        x.name for b in range(3) for x in block_linears(toy.model, b).values()
    }
    torch.testing.assert_close(
        dense.fisher[f"model.layers.1.{MODULE}"], expected, rtol=1e-3, atol=0
    )


def test_more_bits_and_weights_cost_less(toy: LoadedModel, ids: Tensor, dense: DenseTrace) -> None:
    linears = block_linears(toy.model, 0)
    stream = open_stream(toy.model, ids, 4)
    with InputCollector(linears, StatisticsLevel.GRAM) as collector:
        run_block(toy.model, stream, 0, stream.hidden)
        inputs = collector.finish()[MODULE]
    W, name = linears[MODULE].read(), linears[MODULE].name
    for falling in (["70%", "50%", "30%"], ["int2-g64", "int3-g64", "int4-g64", "int8-g64"]):
        errors = []
        formats = [*map(Format.parse, falling)]
        for form, V in candidates(W, inputs, formats, Solvers(), name, print).items():
            energy = energies(W, inputs.gram).sum().item()
            errors.append(output_error(V - W, energy, inputs.gram, dense.fisher[name]))
            assert form.pattern is None or (V == 0).float().mean() >= form.sparsity - 0.01
        estimates = [fisher for _, fisher in errors]
        assert estimates == sorted(estimates, reverse=True)
        assert errors[-1][0] < 0.05
    joint = Format.parse("2:4+int4-g64")
    both = candidates(W, inputs, [joint], Solvers(), name, print)[joint]
    assert (both.view(len(W), -1, 4) != 0).sum(-1).max() <= 2


def test_formats_made_together_equal_those_made_alone(toy: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    W, X = torch.randn(24, 128, generator=generator), torch.randn(500, 128, generator=generator)
    gram = X.T @ X / len(X)
    inputs = InputStatistics(len(X), gram.diagonal(), gram)
    for grid in ("symmetric", "zero-point", "offset"):
        widths = [QuantSettings(bits, 64, grid, "minmax") for bits in (2, 4, 8)]
        for of, (V, actual) in zip(widths, gptq_widths(W, inputs, widths, 0.01), strict=True):
            alone, expected = gptq(W, inputs, of, 0.01)
            assert torch.equal(actual.codes(V), expected.codes(alone))
            torch.testing.assert_close(actual.scale, expected.scale)
