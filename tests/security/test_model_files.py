"""Model files from strangers: whatever they hold, a clear refusal, in little time and memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model

from backend.errors import ModelError
from backend.models.loading import load
from backend.models.saving import save
from backend.models.sources import hub
from backend.models.sources.catalogue import inspect
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import Settings


@pytest.fixture
def folder(current: Settings) -> Path:
    """A copy of the toy that a test may spoil."""
    target = current.root / "models" / "mine"
    shutil.copytree(TOY_FOLDER, target)
    return target


def refusal(spec: str | Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        inspect(str(spec))
    error = caught.value
    assert error.field == "model" and error.what and error.why and error.do
    return error


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
    with pytest.raises(ModelError, match="does not match its config"):
        save(loaded.model, loaded.tokenizer, tmp_path, "")


def test_a_saved_tensor_of_another_shape_is_noticed(tmp_path: Path) -> None:
    loaded = load("toy")
    loaded.model.config.intermediate_size //= 2
    with pytest.raises(ModelError, match=r"has the shape \[192, 64\], not \[96, 64\]"):
        save(loaded.model, loaded.tokenizer, tmp_path, "")
