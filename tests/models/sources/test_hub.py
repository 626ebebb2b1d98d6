"""The hub itself is not at hand in tests: its client is made to fail in each of its ways."""

from __future__ import annotations

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from backend.errors import ModelError
from backend.models.sources import hub
from backend.models.sources.catalogue import inspect
from backend.models.sources.spec import TOY_FOLDER

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
@pytest.mark.parametrize("step", ["headers_of", "download"])
def test_every_way_to_fail_has_its_reason(monkeypatch, error, reason, step):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "model_info", fail)
    with pytest.raises(ModelError, match=reason) as caught:
        getattr(hub, step)("org/name")
    assert caught.value.field == "model"
    assert "org/name" in caught.value.what
    assert caught.value.do


def test_a_model_on_the_hub_is_known_by_its_headers_alone(monkeypatch):
    config = json.loads((TOY_FOLDER / "config.json").read_text())
    shapes = {
        f"model.layers.{block}.mlp.up_proj.weight": SimpleNamespace(shape=[192, 64], dtype="BF16")
        for block in range(3)
    }
    monkeypatch.setattr(hub, "cached", lambda hub_id: None)
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
