"""Errors and lookups of the hub client. Tests have no hub: the client is replaced, and raises each
of its errors."""

import json
import threading
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from backend.errors import ModelError
from backend.models.sources import catalog, hub
from backend.models.sources.catalog import inspect
from backend.models.sources.headers import read_config, read_headers
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


ID = "somebody/some-model"


@pytest.fixture(autouse=True)
def _no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cached", lambda hub_id: None)
    monkeypatch.setattr(hub, "_lookups", {})


def test_the_hub_is_asked_once_for_many_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch_headers(hub_id: str) -> hub.Headers:
        asked.append(hub_id)
        return read_config(TOY_FOLDER), read_headers(TOY_FOLDER)

    monkeypatch.setattr(hub, "fetch_headers", fetch_headers)
    facts = [catalog.inspect(ID) for _ in range(5)]
    assert asked == [ID] and facts[0] == facts[4]
    clock = hub.time.monotonic() + hub.ANSWER_TTL_S + 1
    monkeypatch.setattr(hub.time, "monotonic", lambda: clock)
    catalog.inspect(ID)
    assert asked == [ID, ID]


def test_an_error_is_kept_for_a_short_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fail(hub_id: str) -> hub.Headers:
        asked.append(hub_id)
        raise ModelError("No.", "It is gated.", field="model")

    monkeypatch.setattr(hub, "fetch_headers", fail)
    for _ in range(3):
        with pytest.raises(ModelError, match="gated"):
            catalog.inspect(ID)
    clock = hub.time.monotonic() + hub.ERROR_TTL_S + 1
    monkeypatch.setattr(hub.time, "monotonic", lambda: clock)
    with pytest.raises(ModelError):
        catalog.inspect(ID)
    assert len(asked) == 2


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
