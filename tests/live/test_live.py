"""Changes and measurements of a live model."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.heldout import token_nll, window_nll
from backend.decoding.native.model import NativeModel
from backend.decoding.native.weights import WeightLayout
from backend.errors import CancelledError, ConfigError
from backend.live.dense import DenseModel
from backend.live.measurements import layer_histogram, losses, traced_losses
from backend.live.model import LiveModel
from backend.live.running import layers_of
from backend.models.blocks import block_linears, decoder_blocks
from backend.sensitivity.profile import Format

MIX = ("50%", "2:4", "int4-g32", "dense", "62.5%", "2:4+int3-g32", "int8")


def mixed(dense: DenseModel) -> dict[str, str]:
    names = dense.in_blocks
    return {name: MIX[n % len(MIX)] for n, name in enumerate(names)} | {
        dense.outside[0]: "int8-g32"
    }


@pytest.fixture
def live(dense: DenseModel) -> LiveModel:
    return LiveModel(dense)


def plain(live: LiveModel, dtype: torch.dtype) -> PreTrainedModel:
    """Model in PyTorch with the weights of a live model."""
    model = deepcopy(live.dense.model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, layer in layers_of(model).items():
        layer.write(live.weight(name))
    return model


def test_losses_equal_those_of_a_plain_implementation(live: LiveModel, unseen: Tensor) -> None:
    live.apply(dict.fromkeys(live.dense.in_blocks, "50%") | {live.dense.in_blocks[2]: "2:4"})
    native, ids = NativeModel(plain(live, torch.bfloat16)), unseen[0]
    assert live.running.decoder.startswith("native")
    cache, logits = native.new_cache(len(ids)), []
    for part in ids.split(64):
        logits.append(native.forward(part, cache, read_out=len(part))[1])
    (actual,) = losses(live, ids[None])
    assert actual.loss == pytest.approx(token_nll(torch.cat(logits), ids).mean().item(), rel=1e-7)


def test_interrupted_preparation_continues(dense: DenseModel) -> None:
    formats = dict.fromkeys(dense.in_blocks, Format.parse("50%"))
    assert [next(dense.prepare(formats, "wanda"))[:2] for _ in range(2)] == [(1, 3), (2, 3)]
    first, *other_steps = dense.prepare(formats, "wanda")
    assert first[:2] == (3, 3) and len(other_steps) == len(formats) and dense.energies


def test_inputs_are_measured_again_after_an_error(
    dense: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = dict.fromkeys(dense.in_blocks, Format.parse("50%"))
    broken = iter([(1, 3, "")])
    with monkeypatch.context() as patch:
        patch.setattr(dense, "measure_inputs", lambda: (1 / 0 for _ in broken))
        with pytest.raises(ZeroDivisionError):
            next(dense.prepare(formats, "wanda"))
    assert next(dense.prepare(formats, "wanda"))[:2] == (1, 3)


def test_a_layer_can_be_read_while_its_block_runs_with_other_weights(live: LiveModel) -> None:
    """A histogram or a format may be requested while blocks are refined."""
    dense = live.dense
    name, read = dense.in_blocks[0], list[Tensor]()
    before, block = dense.weight(name).clone(), decoder_blocks(dense.model)[0]

    def ask(*_: object) -> None:
        assert dense.checked_format(name, "2:4").pattern
        read.append(dense.weight(name).clone())

    hook = block.register_forward_pre_hook(ask)
    live.apply(dict.fromkeys(dense.in_blocks, "50%"), "sparsegpt")
    assert len([*live.refine()]) == dense.blocks
    hook.remove()
    assert read and all(weight.equal(before.to(weight.dtype)) for weight in read)


def test_losses_in_pytorch_equal_those_of_a_plain_implementation(
    dense: DenseModel, unseen: Tensor
) -> None:
    live = LiveModel(dense, torch.float32)
    live.apply(mixed(dense))
    *_, actual = losses(live, unseen[:6], divergence=True)
    logits = plain(live, torch.float32)(input_ids=unseen[:6]).logits
    assert actual.windows == pytest.approx(window_nll(logits, unseen[:6]).tolist(), rel=1e-5)
    p = plain(LiveModel(dense, torch.float32), torch.float32)(input_ids=unseen[:6]).logits
    p, q = (x[:, :-1].log_softmax(-1) for x in (p, logits))
    kl = (p.exp() * (p - q)).sum(-1).mean(1).tolist()
    assert actual.divergence == pytest.approx(kl, rel=1e-3)
    assert actual.ratio and actual.ratio.low < actual.ratio.value < actual.ratio.high


def test_the_native_decoder_reads_the_codes(dense: DenseModel, unseen: Tensor) -> None:
    actual = []
    for dtype in (torch.bfloat16, torch.float32):
        live = LiveModel(dense, dtype)
        live.apply(mixed(dense) | dict.fromkeys(dense.in_blocks[-7:], "int4-g32"))
        *_, each = losses(live, unseen[:4])
        actual.append(each.loss)
    assert actual[0] == pytest.approx(actual[1], abs=0.02)


def test_only_changed_layers_are_made_and_repacked(
    live: LiveModel, unseen: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, running, matrices = live.dense.in_blocks, live.running, list[object]()
    down, query = (next(n for n in names if n.endswith(x)) for x in ("down_proj", "q_proj"))
    lay_out = WeightLayout.matrix

    def counted(layout: WeightLayout, *linears: object) -> object:
        matrices.append(lay_out(layout, *linears))
        return matrices[-1]

    monkeypatch.setattr(WeightLayout, "matrix", counted)

    def laid(formats: dict[str, str]) -> tuple[int, int]:
        matrices.clear()
        return len(live.apply(formats)), len(matrices)

    assert laid({down: "50%"}) == (1, 1)
    assert laid({down: "50%", query: "dense"}) == (0, 0)
    assert laid({query: "2:4"}) == (1, 1)  # its matrix includes keys and values
    assert laid({live.dense.outside[0]: "int6-g32"}) == (1, 1)
    assert laid(dict.fromkeys(names, "int4-g32")) == (21, 15)
    read = running.read_bytes
    assert laid(dict.fromkeys(live.dense.layers, "dense")) == (22, 16)
    assert read < 0.4 * running.read_bytes
    *_, actual = losses(live, unseen[:2])
    assert actual.windows == actual.dense  # no trace of the previous state remains


@pytest.mark.parametrize(
    ("formats", "pruner", "cause"),
    [
        ({0: "int0"}, "", "0 bits are not offered"),
        ({0: "100%"}, "", "not between 0 and 100"),
        ({0: "0%"}, "", "not between"),
        ({0: "int4-g40"}, "", "do not divide"),
        ({0: "3:7"}, "", "do not divide"),
        ({0: "what"}, "", "not a pattern"),
        ({"model.layers.9.mlp": "50%"}, "", "not a layer of this model"),
        ({"model.embed_tokens": "50%"}, "", "not pruned"),
        ({}, "magic", "method 'magic' does not exist"),
        ({}, "wanda", "no calibration text"),
    ],
)
def test_impossible_changes_are_refused_and_change_nothing(
    make: Callable[..., DenseModel], formats: dict[str | int, str], pruner: str, cause: str
) -> None:
    live = LiveModel(make(text=False))
    names = live.dense.in_blocks
    live.apply({names[1]: "50%"})
    before = live.formats, live.pruner, live.quantizer
    requested = {names[n] if isinstance(n, int) else n: form for n, form in formats.items()}
    with pytest.raises(ConfigError, match=cause):
        live.apply({names[1]: "2:4", **requested}, pruner)
    assert (live.formats, live.pruner, live.quantizer) == before
    with pytest.raises(ConfigError, match="no calibration text"):
        live.apply({}, "alps")
        next(live.refine())
    with pytest.raises(ConfigError, match="available in runs only"):
        live.apply({names[0]: "int4"}, quantizer="awq")
        next(live.refine())


def test_unusable_text_is_refused(live: LiveModel, unseen: Tensor) -> None:
    for windows, cause in (
        (unseen[:, :1], "at least two tokens"),
        (unseen[:0], "at least two tokens"),
        (unseen + 512, "0 to 511"),
        (unseen.reshape(4, -1), "limit is 256"),
        (-unseen - 1, "0 to 511"),
    ):
        with pytest.raises(ConfigError, match=cause):
            next(losses(live, windows))
    with pytest.raises(ConfigError, match="limit is 128"):
        next(traced_losses(live, unseen[:2].flatten()[:129]))


def test_a_newer_change_cancels_earlier_work(live: LiveModel, unseen: Tensor) -> None:
    names = live.dense.in_blocks
    live.apply(dict.fromkeys(names, "50%"), "sparsegpt")
    measured, traced = losses(live, unseen), traced_losses(live, unseen[0])
    next(measured), next(traced)
    refined = live.refine()
    next(refined)  # changes the model like a user
    for older in (measured, traced):
        with pytest.raises(CancelledError):
            next(older)
    assert [live.origins[name] for name in names] == ["refined"] * 7 + ["instant"] * 14
    live.apply({names[0]: "2:4"})
    with pytest.raises(CancelledError):
        next(refined)
    assert live.origins[names[0]] == "instant" and live.origins[names[1]] == "refined"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_passes_are_cancelled_early(dense: DenseModel, unseen: Tensor, dtype: torch.dtype) -> None:
    live, requested = LiveModel(dense, dtype), list[int]()

    def stop() -> None:
        requested.append(1)
        if len(requested) == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        live.running.logits(unseen[0], stop)
    live.running.logits(unseen[0], lambda: None)
    assert len(requested) == 2  # no hook remains


def test_a_calibration_pass_stops_before_its_next_product(dense: DenseModel) -> None:
    requested = list[int]()

    def stop() -> None:
        requested.append(1)
        if len(requested) == 3:
            raise CancelledError

    weights = {module: x.read() for module, x in block_linears(dense.model, 0).items()}
    walk = dense.walk(dense.sds.batch, dense.sds.precision, stop=stop)
    with pytest.raises(CancelledError):
        walk.advance(0, weights)
    dense.walk(dense.sds.batch, dense.sds.precision).advance(0, weights)
    assert len(requested) == 3  # no hook remains


def test_a_released_model_is_built_again(live: LiveModel, unseen: Tensor) -> None:
    live.apply(mixed(live.dense))
    *_, before = losses(live, unseen[:2])
    assert live.nbytes > 0 and live.dense.nbytes > 0
    live.release()
    assert live.nbytes == 0
    *_, after = losses(live, unseen[:2])
    assert after == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_trace_restores_one_block_at_a_time(
    dense: DenseModel, unseen: Tensor, dtype: torch.dtype
) -> None:
    live, ids = LiveModel(dense, dtype), unseen[0, :48]
    live.apply(dict.fromkeys(dense.in_blocks[7:14], "2:4"))
    now, whole = (
        token_nll(x.logits(ids, lambda: None), ids) for x in (live.running, dense.reference(dtype))
    )
    actual = dict(traced_losses(live, ids))
    assert [*actual] == [0, 1, 2] and not actual[0].any() and not actual[2].any()
    assert torch.equal(now + actual[1], now + (whole - now)) and actual[1].any()
    assert torch.equal(token_nll(live.running.logits(ids, lambda: None), ids), now)


def test_the_histogram_is_on_the_scale_of_the_dense_tensor(live: LiveModel) -> None:
    name = live.dense.in_blocks[4]
    live.apply({name: "50%"})
    counts, zeros, below, above = layer_histogram(live.dense, name, live.stored_weight(name))
    weights = live.weight(name)
    assert zeros == int((weights == 0).sum()) >= weights.numel() // 2
    assert zeros + below + above + int(counts.sum()) == weights.numel()
