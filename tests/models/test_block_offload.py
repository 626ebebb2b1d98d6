"""A streamed model, and weights read from files, are the whole model, a block at a time; its hidden
states come back from disk as they were."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from backend.errors import CancelledError, ModelError
from backend.export.reading import StoredLinears
from backend.models import loading, saving
from backend.models.block_forward import HiddenStatesOnDisk, logit_batches
from backend.models.block_offload import (
    is_streamed,
    override_weights,
    resident,
)
from backend.models.blocks import block_linears, decoder_blocks
from backend.models.facts import facts_from
from backend.models.loading import load, weights_hash
from backend.models.saving import save
from backend.models.sources.headers import read_config, read_headers
from backend.models.sources.spec import TOY_FOLDER

CPU = torch.device("cpu")
Pair = Callable[..., tuple[PreTrainedModel, PreTrainedModel]]


@pytest.fixture
def pair(make: Callable[..., PreTrainedModel], tmp_path: Path) -> Pair:
    """The same model twice: as plain transformers loads it, and streamed."""

    def build(family: str, dtype: torch.dtype = torch.float32, base: bool = False, **options):
        folder = tmp_path / family
        made = make(family).to(torch.bfloat16)
        made.save_pretrained(folder)
        config = (folder / "config.json").read_text()  # of the causal model
        (folder / "model.safetensors").unlink()  # its shards follow
        (made.base_model if base else made).save_pretrained(folder, max_shard_size="20kB")
        (folder / "config.json").write_text(config)
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        streamed, missing = loading._load_streamed(folder, dtype, CPU)
        assert not missing and is_streamed(streamed) and not is_streamed(whole)
        return whole.eval(), streamed.eval()

    return build


def in_memory(model: PreTrainedModel) -> list[int]:
    """Blocks that have weights."""
    blocks = enumerate(decoder_blocks(model))
    return [n for n, block in blocks if not any(p.is_meta for p in block.parameters())]


def logits(model: PreTrainedModel, tokens: torch.Tensor, **options) -> torch.Tensor:
    return torch.cat([*logit_batches(model, tokens, 2, **options)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_answers_as_plain_transformers_bit_for_bit(family, dtype, pair, tokens):
    whole, streamed = pair(family, dtype)
    with torch.no_grad():
        plain = [whole(input_ids=rows, use_cache=False).logits for rows in tokens.split(2)]
    assert torch.equal(logits(streamed, tokens), torch.cat(plain))
    assert torch.equal(logits(whole, tokens), torch.cat(plain))
    assert weights_hash(streamed) == weights_hash(whole)


def test_one_block_at_a_time(family, pair, tokens):
    _, streamed = pair(family)
    seen = []
    for block in decoder_blocks(streamed):
        block.register_forward_hook(lambda *_: seen.append(in_memory(streamed)))
    assert in_memory(streamed) == []
    logits(streamed, tokens)
    # Three batches. None has weights where the model's own code only passes through.
    assert [s for s in seen if s] == [[0]] * 3 + [[1]] * 3 + [[2]] * 3
    assert in_memory(streamed) == []
    assert not any(p.is_meta for p in streamed.get_input_embeddings().parameters())


def test_names_without_the_models_prefix_in_shards_of_half_precision(pair, tokens, tmp_path):
    whole, streamed = pair("gpt2", torch.bfloat16, base=True)
    folder = tmp_path / "gpt2"
    assert not any(name.startswith("transformer.") for name in read_headers(folder))
    assert len([*folder.glob("*.safetensors")]) > 1
    assert torch.equal(logits(streamed, tokens), logits(whole, tokens))
    assert_same(folder, whole, 3)


def test_a_tied_head_stays_tied(pair):
    whole, streamed = pair("llama")
    assert streamed.lm_head.weight is streamed.model.embed_tokens.weight
    assert [n for n, _ in streamed.named_parameters()] == [n for n, _ in whole.named_parameters()]


def test_nested_and_after_an_error(pair):
    whole, streamed = pair("opt")
    with resident(streamed, 1):
        weight = block_linears(streamed, 1)["fc1"].read()
        with resident(streamed, 1):
            assert in_memory(streamed) == [1]
        assert torch.equal(block_linears(streamed, 1)["fc1"].read(), weight)
    assert torch.equal(weight, block_linears(whole, 1)["fc1"].read())
    with pytest.raises(CancelledError), resident(streamed, 1):
        raise CancelledError
    assert in_memory(streamed) == []


def test_what_is_put_stays_and_what_is_written_does_not(pair, tokens):
    whole, streamed = pair("gpt2")
    weights = [
        {module: torch.randn(x.shape) for module, x in block_linears(whole, b).items()}
        for b in range(3)
    ]
    before = weights_hash(streamed)
    with resident(streamed, 0):
        linear = block_linears(streamed, 0)["mlp.c_fc"]
        linear.write(weights[0]["mlp.c_fc"])
        assert torch.equal(linear.read(), weights[0]["mlp.c_fc"])
    assert weights_hash(streamed) == before
    for model in (whole, streamed):
        override_weights(model, lambda block: {"mlp.c_fc": weights[block]["mlp.c_fc"]})
    assert weights_hash(streamed) == weights_hash(whole) != before
    assert torch.equal(logits(streamed, tokens), logits(whole, tokens))
    other = copy.deepcopy(streamed)  # is on its own
    override_weights(streamed, lambda _: {})
    assert weights_hash(streamed) == before != weights_hash(other)


# folders that are not as they should be -----------------------------------------------------------


@pytest.fixture
def own_folder(current) -> Path:
    """A copy of the toy whose weights are rewritten by `change`."""
    folder = current.root / "models" / "copy"
    folder.mkdir(parents=True)
    for file in TOY_FOLDER.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def rewritten(folder: Path, change: Callable[[dict], None]) -> str:
    weights = load_file(TOY_FOLDER / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_a_block_that_is_not_finite_is_named_when_it_is_read(own_folder):
    def harm(weights):
        weights["model.layers.1.mlp.up_proj.weight"][2, 3] = math.nan

    model = load(rewritten(own_folder, harm), streamed=True).model
    with resident(model, 0):
        pass
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj.* not finite") as caught:
        weights_hash(model)
    assert caught.value.field == "model"
    assert in_memory(model) == []


def test_a_file_that_vanishes_is_told(own_folder):
    model = load(rewritten(own_folder, lambda _: None), streamed=True).model
    (own_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no longer be read"), resident(model, 0):
        pass


# saving -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_saved_parts_are_put_together_by_plain_transformers(streamed, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SHARD_BYTES", 150_000)
    loaded = load("toy", streamed=streamed)
    override_weights(loaded.model, lambda b: {"mlp.up_proj": torch.full((192, 64), 0.01 * b)})
    save(loaded.model, loaded.tokenizer, tmp_path, "# A card\n")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {p.name: p.stat().st_size for p in tmp_path.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files.keys() and len(files) > 3
    assert max(files.values()) < 150_000 + 10_000  # and a header
    assert (tmp_path / "README.md").read_text() == "# A card\n"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("a red ball") == loaded.tokenizer.encode("a red ball")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert weights_hash(plain) == weights_hash(loaded.model)
    assert plain.config.use_cache is True and loaded.model.config.use_cache is False
    assert plain.config.architectures == ["LlamaForCausalLM"]
    assert plain.generation_config.eos_token_id == loaded.model.generation_config.eos_token_id
    assert weights_hash(load("toy").model) != weights_hash(plain)


def test_a_tied_head_is_saved_once(pair, tmp_path):
    whole, streamed = pair("opt", torch.bfloat16)
    tokenizer = load("toy").tokenizer
    save(streamed, tokenizer, tmp_path / "saved", "")
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.dtype == torch.bfloat16 and weights_hash(again) == weights_hash(whole)


def assert_same(folder: Path, model: PreTrainedModel, blocks: int) -> None:
    facts = facts_from("here", read_config(folder), read_headers(folder))
    stored = StoredLinears(folder, facts.linears)
    for index in range(blocks):
        expected = {linear.name: linear.read() for linear in block_linears(model, index).values()}
        found = {linear.name: weight for linear, weight in stored.block(index)}
        assert found.keys() == expected.keys() and found
        for name, weight in found.items():
            assert weight.is_contiguous() and torch.equal(weight, expected[name]), name


def test_every_architecture(model: PreTrainedModel, family: str, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert_same(tmp_path, model, 3)


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 17))


@given(st.lists(SHAPES, max_size=5), st.sampled_from(DTYPES))
def test_they_come_back_bit_for_bit(tmp_path_factory, shapes, dtype):
    kept = HiddenStatesOnDisk(tmp_path_factory.mktemp("states"))
    batches = [torch.randn(shape).to(dtype) for shape in shapes]
    for states in batches:
        kept.append(states)
    assert len(kept) == len(batches)
    for _ in range(2):
        for found, states in zip(kept, batches, strict=True):
            assert found.dtype == dtype and torch.equal(found, states)


def test_two_may_read_at_once_and_what_is_read_is_a_copy(tmp_path: Path) -> None:
    kept = HiddenStatesOnDisk(tmp_path)
    for value in (1.0, 2.0):
        kept.append(torch.full((1, 2, 3), value))
    for left, right in zip(kept, kept, strict=True):
        assert torch.equal(left, right)
        left.zero_()
        assert right.abs().sum() > 0
    assert list(tmp_path.iterdir()) == []  # the file has no name
    kept.append(torch.full((1, 2, 3), 3.0))
    assert [states[0, 0, 0].item() for states in kept] == [1.0, 2.0, 3.0]
