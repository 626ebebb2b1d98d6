"""The catalog: models on disk and on the Hub, known by their headers; folders that are refused."""

import json
import shutil
import threading
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from backend.errors import ModelError
from backend.models.blocks import block_linears
from backend.models.loading import load
from backend.models.sources import catalog, hub
from backend.models.sources.catalog import entries, inspect, materialize
from backend.models.sources.headers import read_config, read_headers
from backend.models.sources.spec import TOY_FOLDER
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


def test_a_shipped_model_is_known_before_it_is_there(own_cache):
    facts, gemma = inspect("smollm2-135m"), inspect("gemma-3-270m")
    assert (facts.parameters, len(facts.linears)) == (134_515_008, 210)
    assert "set up once" in facts.note
    assert (gemma.parameters, len(gemma.linears)) == (268_098_176, 126)
    known = {entry.name: entry for entry in entries()}
    assert not known["smollm2-135m"].ready and not known["gemma-3-270m"].ready
    assert "Gemma Terms of Use" in known["gemma-3-270m"].note


def test_a_refused_model_is_not_ready(folder, monkeypatch):
    known = {entry.name: entry for entry in entries()}
    assert known[str(folder)].ready and not known[str(folder)].refused
    with monkeypatch.context() as patch:
        patch.setattr("backend.models.sources.spec.MAX_ENTRIES", 3)
        assert "more than 3 files" in refusal(folder).why
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


def test_entries_list_what_is_on_disk(data_dir, tmp_path, given):
    shutil.copytree(TOY_FOLDER, tmp_path / "shelf" / "org" / "one")
    (tmp_path / "shelf" / "two.gguf").write_bytes(b"")
    (tmp_path / "shelf" / "empty").mkdir()
    given(MODEL_DIRS=json.dumps([str(tmp_path / "shelf")]))
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


def test_smollm2_expected_shapes_are_those_of_its_config(own_cache):
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


# hub ----------------------------------------------------------------------------------------------


RESPONSE = SimpleNamespace(headers={}, status_code=404, request=None, json=dict, text="")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.GatedRepoError("403", response=RESPONSE), "gated model"),
        (errors.RepositoryNotFoundError("404", response=RESPONSE), "has no public model"),
        (errors.HFValidationError("bad id"), "has no public model"),
        (errors.NotASafetensorsRepoError("pickle"), "no safetensors"),
        (errors.OfflineModeIsEnabled("off"), "offline"),
        (errors.LocalEntryNotFoundError("gone"), "offline"),
        (errors.EntryNotFoundError("no config.json"), "no config.json"),
        (TimeoutError("took too long"), "took too long"),
    ],
)
@pytest.mark.parametrize("step", ["fetch_headers", "download"])
def test_every_way_to_fail_has_its_reason(monkeypatch, error, reason, step):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "model_info", fail)
    with pytest.raises(ModelError, match=reason) as caught:
        getattr(hub, step)("org/name")
    assert caught.value.field == "model"
    assert "org/name" in caught.value.what
    assert caught.value.do


@pytest.mark.usefixtures("unasked")
def test_a_model_on_the_hub_is_known_by_its_headers_alone(monkeypatch):
    config = json.loads((TOY_FOLDER / "config.json").read_text())
    shapes = {
        f"model.layers.{block}.mlp.up_proj.weight": SimpleNamespace(shape=[192, 64], dtype="BF16")
        for block in range(3)
    }
    monkeypatch.setattr(huggingface_hub, "model_info", lambda hub_id, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda hub_id, name: TOY_FOLDER / name)
    monkeypatch.setattr(
        huggingface_hub,
        "get_safetensors_metadata",
        lambda hub_id: SimpleNamespace(files_metadata={"a": SimpleNamespace(tensors=shapes)}),
    )
    facts = inspect("org/name")
    assert facts.hidden == config["hidden_size"]
    assert (facts.dtype, facts.parameters) == ("bfloat16", 3 * 192 * 64)


ID = "somebody/some-model"


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of the Hub yet."""
    monkeypatch.setattr(hub, "cached", lambda hub_id: None)
    monkeypatch.setattr(hub, "_lookups", {})


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("fails", [False, True])
def test_an_answer_of_the_hub_is_kept_and_an_error_for_a_shorter_time(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    asked: list[str] = []

    def fetch_headers(hub_id: str) -> hub.Headers:
        asked.append(hub_id)
        if fails:
            raise ModelError("No.", "It is gated.", field="model")
        return read_config(TOY_FOLDER), read_headers(TOY_FOLDER)

    def ask() -> None:
        with pytest.raises(ModelError, match="gated") if fails else nullcontext():
            assert catalog.inspect(ID).vocabulary == 512

    monkeypatch.setattr(hub, "fetch_headers", fetch_headers)
    for _ in range(5):
        ask()
    assert asked == [ID] and hub.ERROR_TTL_S < hub.ANSWER_TTL_S
    clock = hub.time.monotonic() + (hub.ERROR_TTL_S if fails else hub.ANSWER_TTL_S) + 1
    monkeypatch.setattr(hub.time, "monotonic", lambda: clock)
    ask()
    assert asked == [ID, ID]


@pytest.mark.usefixtures("unasked")
def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(hub, "fetch_headers", lambda hub_id: over.wait(60))
    monkeypatch.setattr(hub, "DEADLINE_S", 0.05)
    try:
        for number in range(2 * hub.MAX_LOOKUPS):
            with pytest.raises(ModelError, match="did not answer within") as raised:
                catalog.inspect(f"{ID}-{number}")
            assert raised.value.field == "model"
        waiting = [t for t in threading.enumerate() if t.name.startswith("hub")]
        assert len(waiting) <= hub.MAX_LOOKUPS
    finally:
        over.set()
