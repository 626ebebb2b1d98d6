"""Changing a live model, and measuring what it has become."""

from __future__ import annotations

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
from backend.models.blocks import decoder_blocks
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
    """A model with the live weights, made the plain way."""
    model = deepcopy(live.dense.model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, layer in layers_of(model).items():
        layer.write(live.weight(name))
    return model


def test_the_loss_is_that_of_a_model_made_the_plain_way(live: LiveModel, unseen: Tensor) -> None:
    live.apply(dict.fromkeys(live.dense.in_blocks, "50%") | {live.dense.in_blocks[2]: "2:4"})
    native, ids = NativeModel(plain(live, torch.bfloat16)), unseen[0]
    assert live.running.decoder.startswith("native")
    cache, logits = native.new_cache(len(ids)), []
    for part in ids.split(64):
        logits.append(native.forward(part, cache, read_out=len(part))[1])
    (found,) = losses(live, ids[None])
    assert found.loss == pytest.approx(token_nll(torch.cat(logits), ids).mean().item(), rel=1e-7)


def test_what_a_newer_request_interrupts_goes_on_from_there(dense: DenseModel) -> None:
    formats = dict.fromkeys(dense.in_blocks, Format.parse("50%"))
    assert [next(dense.prepare(formats, "wanda"))[:2] for _ in range(2)] == [(1, 3), (2, 3)]
    first, *others = dense.prepare(formats, "wanda")
    assert first[:2] == (3, 3) and len(others) == len(formats) and dense.energies


def test_after_an_error_inputs_are_measured_anew(
    dense: DenseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = dict.fromkeys(dense.in_blocks, Format.parse("50%"))
    broken = iter([(1, 3, "")])
    with monkeypatch.context() as patch:
        patch.setattr(dense, "measure_inputs", lambda: (1 / 0 for _ in broken))
        with pytest.raises(ZeroDivisionError):
            next(dense.prepare(formats, "wanda"))
    assert next(dense.prepare(formats, "wanda"))[:2] == (1, 3)


def test_a_layer_is_read_while_its_block_runs_on_other_weights(live: LiveModel) -> None:
    """As by a histogram, or a format, that is asked for while blocks are refined."""
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


def test_so_it_is_in_pytorch(dense: DenseModel, unseen: Tensor) -> None:
    live = LiveModel(dense, torch.float32)
    live.apply(mixed(dense))
    *_, found = losses(live, unseen[:6], divergence=True)
    logits = plain(live, torch.float32)(input_ids=unseen[:6]).logits
    assert found.windows == pytest.approx(window_nll(logits, unseen[:6]).tolist(), rel=1e-5)
    p = plain(LiveModel(dense, torch.float32), torch.float32)(input_ids=unseen[:6]).logits
    p, q = (x[:, :-1].log_softmax(-1) for x in (p, logits))
    kl = (p.exp() * (p - q)).sum(-1).mean(1).tolist()
    assert found.divergence == pytest.approx(kl, rel=1e-3)
    assert found.ratio and found.ratio.low < found.ratio.value < found.ratio.high


def test_the_native_decoder_reads_the_codes(dense: DenseModel, unseen: Tensor) -> None:
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        live = LiveModel(dense, dtype)
        live.apply(mixed(dense) | dict.fromkeys(dense.in_blocks[-7:], "int4-g32"))
        *_, each = losses(live, unseen[:4])
        found.append(each.loss)
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_only_what_changed_is_made_and_laid_out(
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
    assert laid({query: "2:4"}) == (1, 1)  # its matrix holds keys and values, too
    assert laid({live.dense.outside[0]: "int6-g32"}) == (1, 1)
    assert laid(dict.fromkeys(names, "int4-g32")) == (21, 15)
    read = running.read_bytes
    assert laid(dict.fromkeys(live.dense.layers, "dense")) == (22, 16)
    assert read < 0.4 * running.read_bytes
    *_, found = losses(live, unseen[:2])
    assert found.windows == found.dense  # nothing is left of what it was


@pytest.mark.parametrize(
    ("formats", "pruner", "why"),
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
def test_what_cannot_be_is_refused_and_changes_nothing(
    make: Callable[..., DenseModel], formats: dict[str | int, str], pruner: str, why: str
) -> None:
    live = LiveModel(make(text=False))
    names = live.dense.in_blocks
    live.apply({names[1]: "50%"})
    before = live.formats, live.pruner, live.quantizer
    asked = {names[n] if isinstance(n, int) else n: form for n, form in formats.items()}
    with pytest.raises(ConfigError, match=why):
        live.apply({names[1]: "2:4", **asked}, pruner)
    assert (live.formats, live.pruner, live.quantizer) == before
    with pytest.raises(ConfigError, match="no calibration text"):
        live.apply({}, "alps")
        next(live.refine())
    with pytest.raises(ConfigError, match="made by runs only"):
        live.apply({names[0]: "int4"}, quantizer="awq")
        next(live.refine())


def test_text_that_cannot_be_measured_on_is_refused(live: LiveModel, unseen: Tensor) -> None:
    for windows, why in (
        (unseen[:, :1], "takes two"),
        (unseen[:0], "takes two"),
        (unseen + 512, "0 to 511"),
        (unseen.reshape(4, -1), "at most 256"),
        (-unseen - 1, "0 to 511"),
    ):
        with pytest.raises(ConfigError, match=why):
            next(losses(live, windows))
    with pytest.raises(ConfigError, match="at most 128"):
        next(traced_losses(live, unseen[:2].flatten()[:129]))


def test_a_newer_change_cancels_what_is_older(live: LiveModel, unseen: Tensor) -> None:
    names = live.dense.in_blocks
    live.apply(dict.fromkeys(names, "50%"), "sparsegpt")
    measured, traced = losses(live, unseen), traced_losses(live, unseen[0])
    next(measured), next(traced)
    refined = live.refine()
    next(refined)  # changes the model, as a person does
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
    live, asked = LiveModel(dense, dtype), list[int]()

    def stop() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        live.running.logits(unseen[0], stop)
    live.running.logits(unseen[0], lambda: None)
    assert len(asked) == 2  # no hook is left


def test_what_is_dropped_comes_back(live: LiveModel, unseen: Tensor) -> None:
    live.apply(mixed(live.dense))
    *_, before = losses(live, unseen[:2])
    assert live.nbytes > 0 and live.dense.nbytes > 0
    live.release()
    assert live.nbytes == 0
    *_, after = losses(live, unseen[:2])
    assert after == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_by_blocks(dense: DenseModel, unseen: Tensor, dtype: torch.dtype) -> None:
    live, ids = LiveModel(dense, dtype), unseen[0, :48]
    live.apply(dict.fromkeys(dense.in_blocks[7:14], "2:4"))
    now, whole = (
        token_nll(x.logits(ids, lambda: None), ids) for x in (live.running, dense.reference(dtype))
    )
    found = dict(traced_losses(live, ids))
    assert [*found] == [0, 1, 2] and not found[0].any() and not found[2].any()
    assert torch.equal(now + found[1], now + (whole - now)) and found[1].any()
    assert torch.equal(token_nll(live.running.logits(ids, lambda: None), ids), now)


def test_the_histogram_is_on_the_scale_of_the_dense_tensor(live: LiveModel) -> None:
    name = live.dense.in_blocks[4]
    live.apply({name: "50%"})
    counts, zeros, below, above = layer_histogram(live.dense, name, live.stored_weight(name))
    weights = live.weight(name)
    assert zeros == int((weights == 0).sum()) >= weights.numel() // 2
    assert zeros + below + above + int(counts.sum()) == weights.numel()
