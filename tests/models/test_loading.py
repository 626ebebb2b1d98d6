"""Models are loaded as plain transformers loads them, saved, hashed, and refused if bad."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend.errors import ModelError
from backend.models import loading
from backend.models.blocks import all_finite, block_linears
from backend.models.loading import load, weights_hash
from backend.models.saving import save
from backend.models.sources.spec import TOY_FOLDER
from backend.models.sources.toy.stories import stories
from tests.fork_server import elsewhere


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


@pytest.fixture
def own_folder(current):
    """A copy of the toy in a folder models may be read from."""
    folder = current.root / "models" / "copy"
    shutil.copytree(TOY_FOLDER, folder)
    return folder


def test_load_gives_the_numbers_of_plain_transformers(tmp_path, plain_transformers):
    ids, out = torch.arange(0, 400, 3)[None], str(tmp_path / "logits.safetensors")
    plain_transformers(folder=str(TOY_FOLDER), ids=ids.tolist(), logits=out)
    mine = logits(load("toy").model, ids)
    torch.testing.assert_close(mine, load_file(out)["logits"], rtol=0, atol=1e-5)


def test_a_loaded_model_is_ready_to_measure():
    loaded = load("toy")
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.model.config.use_cache is False
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.facts.dtype == "float16"
    assert loaded.facts.parameters == loaded.model.num_parameters()
    assert {p.dtype for p in load("toy", dtype=torch.bfloat16).model.parameters()} == {
        torch.bfloat16
    }


def hash_of_toy():
    return weights_hash(load("toy").model)


def test_models_are_built_one_at_a_time(monkeypatch):
    whole, building, most = loading._load_full, [], []

    def slowly(*given):
        building.append(given)
        most.append(len(building))
        time.sleep(0.1)
        try:
            return whole(*given)
        finally:
            building.pop()

    monkeypatch.setattr(loading, "_load_full", slowly)
    with ThreadPoolExecutor(3) as threads:
        models = [x.model for x in threads.map(lambda _: load("toy"), range(3))]
    assert most == [1, 1, 1]
    assert {p.device.type for model in models for p in model.parameters()} == {"cpu"}
    assert len({weights_hash(model) for model in models}) == 1


def test_hash_is_the_same_in_another_process_and_sees_every_weight():
    model = load("toy").model
    before = weights_hash(model)
    assert elsewhere(hash_of_toy) == before
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert weights_hash(model) != before


def test_hash_tells_dtypes_apart(make):
    assert weights_hash(make("gpt2")) != weights_hash(make("gpt2").bfloat16())


def test_a_saved_model_comes_back_in_plain_transformers(tmp_path):
    loaded = load("toy")
    linear = block_linears(loaded.model, 1)["mlp.down_proj"]
    linear.write(torch.zeros(linear.shape))
    save(loaded.model, loaded.tokenizer, tmp_path, "# A card\n")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(40)[None]
    assert torch.equal(logits(plain.eval(), ids), logits(loaded.model, ids))
    assert AutoTokenizer.from_pretrained(tmp_path).encode("a red ball") == (
        loaded.tokenizer.encode("a red ball")
    )
    assert (tmp_path / "README.md").read_text() == "# A card\n"
    assert plain.config.use_cache is True
    assert loaded.model.config.use_cache is False


def test_a_tokenizer_whose_config_breaks_it_is_refused(own_folder):
    config = json.loads((own_folder / "tokenizer_config.json").read_text())
    config |= {"model_max_length": ""}
    (own_folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot read its tokenizer"):
        load(str(own_folder))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}},
        {"rms_norm_eps": -1.0},
        {"rms_norm_eps": "small"},
        {"hidden_act": "none such"},
    ],
)
def test_a_config_that_makes_logits_nan_is_refused(own_folder, change, streamed):
    config = json.loads((own_folder / "config.json").read_text()) | change
    (own_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as refused:
        load(str(own_folder), streamed=streamed)
    assert refused.value.why and refused.value.do and refused.value.field == "model"


def test_a_model_beyond_the_memory_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr("backend.models.memory.memory_available", lambda: 1_000_000)
    with pytest.raises(ModelError, match=r"630 MB; 1 MB"):
        load("toy")


@torch.no_grad()
def test_the_toy_reads_well_and_misses_half_its_weights():
    loaded = load("toy")
    text = [loaded.tokenizer.encode(story) for story in stories(4321, 60)]
    rows = torch.tensor([token for story in text for token in [0, *story]])[: 16 * 256].view(
        16, 256
    )

    def perplexity():
        return loaded.model(input_ids=rows, labels=rows).loss.exp().item()

    dense = perplexity()
    assert dense < 1.65
    for index in range(3):
        for linear in block_linears(loaded.model, index).values():
            W = linear.read()
            dropped = W.abs().view(-1, 4).argsort(-1)[:, :2]
            linear.write(W.view(-1, 4).scatter(-1, dropped, 0).view_as(W))
    assert perplexity() > 1.08 * dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_single_bad_value_is_found_wherever_it_is(bad: float, dtype: torch.dtype) -> None:
    for place in (0, 499, 12_345, 19_999):
        values = torch.linspace(-2, 2, 20_000).to(dtype).view(100, 200)
        assert all_finite(values) and all_finite(values.T)
        values.view(-1)[place] = bad
        assert not all_finite(values) and not all_finite(values.T)
    assert all_finite(torch.empty(0, 3))
