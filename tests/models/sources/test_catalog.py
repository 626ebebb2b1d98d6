import json
import shutil
import struct
from functools import partial

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from backend.errors import ModelError
from backend.models.blocks import block_linears
from backend.models.loading import load
from backend.models.sources.catalog import entries, inspect, materialize
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import settings
from tests.security.conftest import configure, folder, refusal

__all__ = ["folder"]


def test_headers_tell_what_the_loaded_model_is(family, model, current):
    """Names, shapes and counts are compared with those of the loaded model."""
    folder = current.root / "models" / family
    model.save_pretrained(folder)
    facts = inspect(str(folder))
    real = [linear for index in range(3) for linear in block_linears(model, index).values()]
    assert {(x.name, x.block, x.module, x.rows, x.columns) for x in facts.linears} == {
        (x.name, x.block, x.module, *x.shape) for x in real
    }
    assert facts.parameters == model.num_parameters()
    assert facts.architecture == type(model).__name__
    assert (facts.blocks, facts.hidden, facts.vocabulary, facts.context) == (3, 32, 96, 64)
    assert (facts.dtype, facts.default_text) == ("float32", "wikipedia")
    assert facts.linear_weights == sum(x.shape[0] * x.shape[1] for x in real)


def test_a_shipped_model_is_known_before_it_is_there(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path))
    settings.cache_clear()
    facts = inspect("smollm2-135m")
    assert facts.parameters == 134_515_008
    assert len(facts.linears) == 210
    assert "set up once" in facts.note
    gemma = inspect("gemma-3-270m")
    assert (gemma.parameters, len(gemma.linears)) == (268_098_176, 126)
    known = {entry.name: entry for entry in entries()}
    assert not known["smollm2-135m"].ready and not known["gemma-3-270m"].ready
    assert "Gemma Terms of Use" in known["gemma-3-270m"].note


def test_a_refused_model_is_not_ready(folder):
    known = {entry.name: entry for entry in entries()}
    assert known[str(folder)].ready and not known[str(folder)].refused
    configure(folder, num_hidden_layers=4)
    entry = next(entry for entry in entries() if entry.name == str(folder))
    assert not entry.ready and "specifies 4 blocks" in entry.refused


def test_experts_of_an_unknown_kind_are_counted_and_not_compressed(folder):
    configure(folder, num_local_experts=8)
    facts = inspect(str(folder))
    with pytest.raises(ModelError, match="Mixtures of experts of the family") as caught:
        facts.require_compressible()
    assert caught.value.field == "model"
    facts.require_decodable()


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.extra.weight"]
)
@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint8"])
def test_parameters_that_are_no_floats_are_refused(folder, name, dtype):
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights.get(name, np.zeros((8, 8))).astype(dtype)
    save_file(weights, folder / "model.safetensors")
    assert f"{name} is stored as" in refusal(folder).why


def test_pickled_weights_are_not_opened(folder):
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(folder).why
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04boom")
    assert "pickle" in refusal(folder).why


def test_a_missing_shard_is_named(folder):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors is missing" in refusal(folder).why
    save_file({"something": np.zeros(1, "float32")}, folder / "model-2.safetensors")
    assert "which is not in that file" in refusal(folder).why


@pytest.mark.parametrize("content", [b"", b"no header", struct.pack("<Q", 2**60) + b"{}"])
def test_a_damaged_weight_file(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "damaged" in refusal(folder).why


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_config(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder).why


@pytest.mark.parametrize("spec", ["", "gpt2", "toy2", "models/x/y", "C:\\model", "a//b", "a/../b"])
def test_a_spec_that_names_nothing(current, spec):
    assert "is not a model" in refusal(spec).what


@pytest.mark.parametrize("inside", [True, False])
def test_what_lies_outside_may_not_be_read(current, tmp_path, inside):
    """A path, a path with dots and a link give the same error, whether the target exists or not."""
    outside = tmp_path / "outside"
    if inside:
        shutil.copytree(TOY_FOLDER, outside)
    models = current.root / "models"
    models.mkdir(parents=True)
    (models / "link").symlink_to(outside)
    for spec in (outside, models / ".." / ".." / "outside", models / "link"):
        assert "outside the allowed" in refusal(spec).why
        with pytest.raises(ModelError):
            materialize(str(spec))


NESTED = "additional_chat_templates/default.jinja"  # which transformers reads


@pytest.mark.parametrize("name", [NESTED, "chat_template.jinja", "notes", "a/b/c/d"])
@pytest.mark.parametrize("kind", ["file outside", "folder outside", "nothing", "circle"])
def test_no_link_at_any_depth_may_lead_out_or_nowhere(folder, tmp_path, name, kind):
    secret = tmp_path / "outside" / "secret.jinja"
    secret.parent.mkdir()
    secret.write_text("secret")
    link = folder / name
    link.parent.mkdir(parents=True, exist_ok=True)
    target = {"file outside": secret, "folder outside": secret.parent, "circle": link}
    link.symlink_to(target.get(kind, folder / "nothing"))
    assert f"{name} is a link" in refusal(folder).why
    for use in (materialize, load):
        with pytest.raises(ModelError, match="is a link"):
            use(str(folder))
    entry = next(entry for entry in entries() if entry.name == str(folder))
    assert not entry.ready and "is a link" in entry.refused


def test_a_folder_of_many_models_is_none(folder, monkeypatch):
    monkeypatch.setattr("backend.models.sources.spec.MAX_ENTRIES", 3)
    assert "more than 3 files" in refusal(folder).why


def test_a_bad_entry_hides_only_itself(folder):
    models = folder.parent
    links = {"a": "a", "b": "c", "c": "b", "d.gguf": "d.gguf", "e.gguf": "none"}
    for name, target in links.items():
        (models / name).symlink_to(models / target)
    (models / "f").mkdir()
    (models / "f" / "config.json").symlink_to("config.json")
    (models / "f" / "model.safetensors").symlink_to("/etc/hostname")
    listed = {entry.name: entry.ready for entry in entries()}
    assert listed[str(folder)] and not any(name.endswith(".gguf") for name in listed)
    assert listed.get(str(models / "f")) in (None, False)
    for name in "abcd":
        assert "is a broken link" in refusal(models / (name + ".gguf" * (name == "d"))).why


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".gguf", "a\0b", "~nobody-of-that-name/x"])
def test_a_name_that_no_file_can_have_is_refused(current, name):
    assert refusal(name if name[0] == "~" else current.root / "models" / name)


def test_entries_list_what_is_on_disk(data_dir, tmp_path, monkeypatch):
    shutil.copytree(TOY_FOLDER, tmp_path / "shelf" / "org" / "one")
    (tmp_path / "shelf" / "two.gguf").write_bytes(b"")
    (tmp_path / "shelf" / "empty").mkdir()
    monkeypatch.setenv("SLIMSCOPE_MODEL_DIRS", json.dumps([str(tmp_path / "shelf")]))
    settings.cache_clear()
    listed = {entry.name: entry for entry in entries()}
    assert list(listed)[:3] == ["toy", "smollm2-135m", "gemma-3-270m"]
    one = str(tmp_path / "shelf" / "org" / "one")
    assert {one, str(tmp_path / "shelf" / "two.gguf")} < set(listed)
    assert not any("empty" in name for name in listed)
    assert inspect(one).parameters == inspect("toy").parameters


def test_a_cached_hub_model_needs_no_network(current, tmp_path, monkeypatch):
    repository = tmp_path / "models--org--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(TOY_FOLDER, repository / "snapshots" / "abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert inspect("org/small").parameters == inspect("toy").parameters
    assert materialize("org/small") == repository / "snapshots" / "abc"
    scan = partial(huggingface_hub.scan_cache_dir, tmp_path)
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", scan)
    assert "org/small" in {entry.name for entry in entries()}
    (repository / "snapshots" / "abc" / "model.safetensors").unlink()
    assert "org/small" not in {entry.name for entry in entries()}


def test_smollm2_expected_shapes_are_those_of_its_config(data_dir, tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path))
    settings.cache_clear()
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    real = {(x.name, x.shape) for i in range(30) for x in block_linears(model, i).values()}
    facts = inspect("smollm2-135m")
    assert {(x.name, (x.rows, x.columns)) for x in facts.linears} == real
    assert facts.parameters == model.num_parameters()
