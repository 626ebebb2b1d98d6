"""Adapters, configs, tokenizers that do not fit a model, and changed saved models, are rejected."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model

from backend import checkpoints
from backend.checkpoints import Checkpoints, sha256_of
from backend.errors import ModelError
from backend.models.loading import load
from backend.models.saving import save
from backend.models.sources import hub
from backend.models.sources.catalog import inspect, materialize, require_loadable
from backend.settings import Settings
from tests.security.conftest import configure, refusal

# adapters -----------------------------------------------------------------------------------------

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    get_peft_model(load("toy").model, LORA).save_pretrained(folder)
    assert "adapter_config.json" in refusal(folder).why
    assert "merge_and_unload" in refusal(folder).do
    with pytest.raises(ModelError, match="not merged"):
        load(str(folder))


def test_an_adapter_that_appears_after_the_inspection_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = inspect(str(folder))
    monkeypatch.setattr("backend.models.loading.inspect", lambda spec: facts)
    get_peft_model(load("toy").model, LORA).save_pretrained(folder)
    with pytest.raises(ModelError, match="not merged"):
        load(str(folder))


def test_a_download_leaves_adapters_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}

    def snapshot(hub_id: str, **options: object) -> str:
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: None)
    hub.download("org/name")
    files = ["config.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]
    wanted = filter_repo_objects(
        files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert [*wanted] == ["config.json", "tokenizer.json"]


def test_a_model_with_an_adapter_is_not_saved_as_if_it_had_none(tmp_path: Path) -> None:
    loaded = load("toy")
    get_peft_model(loaded.model, LORA)  # wraps the layers in place
    with pytest.raises(ModelError, match="does not match its config") as refused:
        save(loaded.model, loaded.tokenizer, tmp_path, "")
    assert any(tmp_path.iterdir()) and "Nothing was saved" not in str(refused.value)
    loaded = load("toy")
    loaded.model.config.intermediate_size //= 2
    with pytest.raises(ModelError, match=r"has the shape \[192, 64\], not \[96, 64\]"):
        save(loaded.model, loaded.tokenizer, tmp_path, "")


# configs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": [1]}, "architecture in its config is 1"),
        ({"architectures": {"a": 1}}, "not a causal language model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "not a causal language model"),
        ({"architectures": None}, "not a causal language model"),
        ({"num_labels": 2**31}, "num_labels"),
        ({"num_labels": []}, "num_labels"),
        ({"text_config": "llama"}, "text_config"),
        ({"model_type": ["llama"], "num_hidden_layers": 4}, "specifies 4 blocks"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 7, "head_dim": None}, "cannot be split into 7 heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"hidden_size": True}, "no hidden_size"),
        ({"vocab_size": 10**400}, "vocab_size"),
        ({"vocab_size": "many"}, "no vocab_size"),
        ({"transformers_weights": "other.safetensors"}, "names a file of weights"),
    ],
)
def test_a_config_that_means_nothing_is_refused(folder: Path, changes: dict, reason: str) -> None:
    configure(folder, **changes)
    assert reason in refusal(folder).why


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"vocab_size": 600}, "embed_tokens"),
        ({"hidden_size": 128}, "embed_tokens"),
        ({"intermediate_size": 200}, "mlp.down_proj"),
        ({"num_attention_heads": 4}, "self_attn.o_proj"),
        ({"num_key_value_heads": 2}, "self_attn.k_proj"),
    ],
)
def test_shapes_unlike_the_config_are_refused(folder: Path, changes: dict, name: str) -> None:
    configure(folder, **changes)
    assert name in refusal(folder).why and "config.json specifies" in refusal(folder).why


def test_a_config_of_countless_blocks_takes_no_memory(folder: Path) -> None:
    configure(folder, num_hidden_layers=10**7)
    inspect("toy")
    tracemalloc.start()
    try:
        assert "num_hidden_layers" in refusal(folder).why
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[" * 500_000, "nested too deeply"), (b'{"a":"' + b"x" * 2**23 + b'"}', "up to 8 MiB")],
)
def test_json_is_bounded(folder: Path, name: str, content: bytes, reason: str) -> None:
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    assert reason in refusal(folder).why


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "not a regular file" in refusal(folder).why


# tokenizers ---------------------------------------------------------------------------------------


def retokenize(folder: Path, token: str, number: int, special: bool) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = {
        "id": number,
        "content": token,
        "special": special,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    tokenizer["added_tokens"].append(added)
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("harm", ["missing", "damaged", "bomb", "too large"])
def test_a_tokenizer_that_does_not_work_is_refused(folder: Path, harm: str) -> None:
    path = folder / "tokenizer.json"
    if harm == "missing":
        for file in folder.glob("*token*"):
            file.unlink()
    elif harm == "too large":
        retokenize(folder, "<new>", 512, special=False)
    else:
        path.write_text("{" if harm == "damaged" else "[" + "[]," * 10**6 + "[]]")
    for check in (lambda: require_loadable(str(folder), 512), lambda: load(str(folder))):
        with pytest.raises(ModelError) as caught:
            check()
        assert caught.value.field == "model" and "token" in caught.value.why and caught.value.do


def test_a_placeholder_behind_the_vocabulary_is_accepted(folder: Path) -> None:
    retokenize(folder, "<image>", 512, special=True)
    require_loadable(str(folder), 512)
    load(str(folder))


# changed models -----------------------------------------------------------------------------------


@pytest.fixture
def saved_folder(current: Settings) -> Path:
    """A model saved by a run."""
    loaded = load("toy")
    with Checkpoints(current.artifacts / "sds-0001").write("model") as draft:
        save(loaded.model, loaded.tokenizer, draft, "# A card")
    return current.artifacts / "sds-0001" / "model"


def zero(file: Path, count: int = 60_000) -> None:
    """Write zeros into the middle of a file, which keeps its size."""
    content = bytearray(file.read_bytes())
    start = len(content) // 4
    content[start : start + count] = bytes(count)
    file.write_bytes(content)


def test_a_saved_model_that_was_changed_is_not_loaded(saved_folder: Path) -> None:
    assert load(str(saved_folder)).facts.blocks == 3
    (saved_folder / "README.md").write_text("# Notes of mine")
    assert load(str(saved_folder)).facts.blocks == 3
    zero(saved_folder / "model.safetensors")
    for read in (load, materialize):
        with pytest.raises(ModelError) as caught:
            read(str(saved_folder))
        assert caught.value.what == "The model of sds-0001 is damaged."
        assert "model.safetensors has changed" in caught.value.why
        assert "run sds-0001 again" in caught.value.do


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_saved_file_of_another_size_is_noticed_at_once(saved_folder: Path, name: str) -> None:
    (saved_folder / name).write_bytes((saved_folder / name).read_bytes() + b"\n")
    assert f"{name} has changed" in refusal(saved_folder).why
    (saved_folder / name).unlink()
    assert f"{name} has changed" in refusal(saved_folder).why


def test_a_saved_file_is_read_once_until_it_changes(
    saved_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def sha256(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(checkpoints, "sha256_of", sha256)
    for _ in range(2):
        assert checkpoints.changed_file(saved_folder, contents=True) == ""
    assert hashed.count("model.safetensors") == 1
    os.utime(saved_folder / "model.safetensors")
    assert checkpoints.changed_file(saved_folder, contents=True) == ""
    assert hashed.count("model.safetensors") == 2


@pytest.mark.parametrize(
    "content", ['{"a": 1}', '{"/etc/passwd": {"bytes": 1, "sha256": ""}}', "[]"]
)
def test_a_manifest_of_another_program_says_nothing(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    assert load(str(folder)).facts.blocks == 3
