"""Blocks run one after another, batches side by side: the same as the model's own forward pass."""

import copy
import os
import threading
from contextlib import suppress

import pytest
import torch

from backend.errors import ModelError
from backend.models.block_forward import (
    logit_batches,
    open_stream,
    run_block,
)
from backend.models.blocks import StopForwardError, block_linears, decoder_blocks, stop_when_reached
from backend.models.loading import load, weights_hash
from backend.models.threads import parallel_map, part_index
from backend.pruning.redense import CHUNK_ROWS, by_rows


@torch.no_grad()
def outputs_of_blocks(model, tokens):
    """What each block returns in the model's own forward pass: [blocks] of [N, L, d]."""
    seen = []
    hooks = [
        block.register_forward_hook(lambda module, args, out: seen.append(out))
        for block in decoder_blocks(model)
    ]
    training = model.training
    model.eval()(input_ids=tokens, use_cache=False)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return seen


def run_all(model, stream):
    outputs = []
    for index in range(len(decoder_blocks(model))):
        assert stream.index == index
        stream.advance(run_block(model, stream, index, stream.hidden))
        outputs.append(torch.cat(stream.hidden))
    return outputs


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.usefixtures("two_threads")  # batches are run side by side
def test_blocks_give_what_the_model_gives(family, make, tokens, attention, batch):
    model = make(family, attn_implementation=attention)
    found = run_all(model, open_stream(model, tokens, batch))
    for mine, own in zip(found, outputs_of_blocks(model, tokens), strict=True):
        torch.testing.assert_close(mine, own)


def test_the_model_and_the_stream_are_given_back_as_they_were(model, tokens):
    model.config.use_cache = True
    first = decoder_blocks(model)[0].eval()  # one block frozen by its owner
    before, training = weights_hash(model), [m.training for m in model.modules()]
    stream = open_stream(model, tokens, 4, torch.bfloat16)
    states = [batch.clone() for batch in stream.hidden]
    once, again = (run_block(model, stream, 0, stream.hidden) for _ in range(2))
    assert stream.index == 0 and all(map(torch.equal, states, stream.hidden))
    assert all(map(torch.equal, once, again)) and not any(batch.requires_grad for batch in once)
    assert [m.training for m in model.modules()] == training
    assert not first.training and model.training
    assert model.config.use_cache is True
    assert weights_hash(model) == before
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_bfloat16_blocks_equal_a_bfloat16_model(model, tokens):
    before = weights_hash(model)
    stream = open_stream(model, tokens, 4, torch.bfloat16)
    cast = copy.deepcopy(model)
    for parameter in cast.parameters():  # as from_pretrained: rotary frequencies stay float32
        parameter.data = parameter.data.to(torch.bfloat16)
    reference = open_stream(cast, tokens, 4)
    stream.hidden = reference.hidden
    for mine, own in zip(run_all(model, stream), run_all(cast, reference), strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, own)
    assert weights_hash(model) == before


def test_weights_come_back_when_a_block_fails(make, tokens):
    model = make("llama")
    before = weights_hash(model)
    stream = open_stream(model, tokens, 4, torch.bfloat16)
    with pytest.raises(RuntimeError):
        run_block(model, stream, 0, [torch.zeros(4, 24, 7, dtype=torch.bfloat16)] * 2)
    assert weights_hash(model) == before


def test_a_model_that_works_between_its_blocks_is_refused(make, tokens):
    model = make("llama")
    decoder_blocks(model)[0].register_forward_hook(lambda module, args, out: out * 2)
    with pytest.raises(ModelError, match="between its decoder blocks"):
        open_stream(model, tokens, 4)


@pytest.mark.parametrize("watched", [["mlp.down_proj"], ["self_attn.q_proj", "mlp.up_proj"], None])
def test_a_pass_ends_when_the_last_watched_layer_has_its_input(make, tokens, watched):
    model = make("llama")
    stream = open_stream(model, tokens, 2)
    linears = block_linears(model, 0)
    layers = {name: linears[name].layer for name in watched or linears}
    seen, ran = {name: [] for name in layers}, []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, n=name: seen[n].append(args[0]))
        for name, layer in layers.items()
    ]
    down = linears["mlp.down_proj"].layer
    hooks.append(down.register_forward_hook(lambda *_: ran.append("down")))
    run_block(model, stream, 0, stream.hidden)
    whole, computed = seen.copy(), len(ran)
    seen |= {name: [] for name in layers}
    outputs = run_block(model, stream, 0, stream.hidden, until=layers.values())
    for hook in hooks:
        hook.remove()
    assert list(outputs) == [] and computed == len(ran) == 3
    for name in layers:
        assert len(seen[name]) == 3
        assert all(torch.equal(a, b) for a, b in zip(seen[name], whole[name], strict=True))
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("streamed", [False, True])
def test_each_logits_tells_how_far_it_is(tokens, streamed):
    model, shares = load("toy", streamed=streamed).model, []
    passes = logit_batches(model, tokens, 2, tick=shares.append)
    assert [logits.shape[0] for logits in passes] == [2, 2, 1]
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(shares) == (13 if streamed else 4)


@pytest.mark.usefixtures("two_threads")
def test_a_pass_that_skips_a_layer_does_not_end_the_next_one():
    """As that of experts to whom no token is sent."""
    layers = [torch.nn.Linear(2, 2) for _ in range(3)]
    x, seen = torch.ones(1, 2), []
    layers[2].register_forward_pre_hook(lambda *_: seen.append(2))

    def passing(chosen):
        begin()
        with suppress(StopForwardError):
            for number in chosen:
                layers[number](x)
            return "ran on"

    with stop_when_reached(layers) as begin:
        assert parallel_map(passing, [(1, 2), (0, 1)]) == ["ran on", "ran on"]
        assert parallel_map(passing, [(0, 1, 2), (2, 0, 1), (0, 2)]) == [None, None, "ran on"]
    assert len(seen) == 4


# threads ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two_threads")
def test_rows_are_the_same_to_the_bit_on_two_threads() -> None:
    W, H = torch.randn(2 * CHUNK_ROWS + 70, 64), torch.randn(64, 64)
    found = by_rows(lambda rows, same: (rows @ H).relu() + same, W, W)
    torch.set_num_threads(1)
    assert torch.equal(found, by_rows(lambda rows, same: (rows @ H).relu() + same, W, W))


@pytest.mark.usefixtures("two_threads")
def test_an_error_is_raised_when_no_part_is_at_work_any_more() -> None:
    ended, failed = [], threading.Event()

    def work(fails: bool) -> None:
        if fails:
            failed.set()
            raise MemoryError
        assert failed.wait(20), "the other part did not fail"
        ended.append(fails)

    with pytest.raises(MemoryError):
        parallel_map(work, [True, False])
    assert ended == [False]


@pytest.mark.usefixtures("two_threads")
def test_a_forked_process_has_workers_of_its_own() -> None:
    assert parallel_map(lambda n: -n, [1, 2, 3]) == [-1, -2, -3]
    if (child := os.fork()) == 0:
        os._exit(parallel_map(lambda n: -n, [1, 2, 3]) != [-1, -2, -3])
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("two_threads")
def test_a_part_knows_its_index() -> None:
    assert parallel_map(lambda _: part_index(), "abcde") == [0, 1, 2, 3, 4] and part_index() == 0
    assert parallel_map(lambda _: part_index(), "a") == [0]
