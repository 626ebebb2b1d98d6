"""How often the hub is asked, and how long it is waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from backend.errors import ModelError
from backend.models.sources import catalogue, hub, hub_lookup
from backend.models.sources.headers import read_config, read_headers
from backend.models.sources.spec import TOY_FOLDER

ID = "somebody/some-model"


@pytest.fixture(autouse=True)
def _no_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hub, "cached", lambda hub_id: None)
    hub_lookup.forget()
    yield
    hub_lookup.forget()


def test_the_hub_is_asked_once_for_many_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def headers_of(hub_id: str) -> hub_lookup.Headers:
        asked.append(hub_id)
        return read_config(TOY_FOLDER), read_headers(TOY_FOLDER)

    monkeypatch.setattr(hub, "headers_of", headers_of)
    facts = [catalogue.inspect(ID) for _ in range(5)]
    assert asked == [ID] and facts[0] == facts[4]
    clock = hub_lookup.time.monotonic() + hub_lookup.ANSWER_TTL_S + 1
    monkeypatch.setattr(hub_lookup.time, "monotonic", lambda: clock)
    catalogue.inspect(ID)
    assert asked == [ID, ID]


def test_an_error_is_kept_for_a_short_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fail(hub_id: str) -> hub_lookup.Headers:
        asked.append(hub_id)
        raise ModelError("No.", "It is gated.", field="model")

    monkeypatch.setattr(hub, "headers_of", fail)
    for _ in range(3):
        with pytest.raises(ModelError, match="gated"):
            catalogue.inspect(ID)
    clock = hub_lookup.time.monotonic() + hub_lookup.ERROR_TTL_S + 1
    monkeypatch.setattr(hub_lookup.time, "monotonic", lambda: clock)
    with pytest.raises(ModelError):
        catalogue.inspect(ID)
    assert len(asked) == 2


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(hub, "headers_of", lambda hub_id: over.wait(60))
    monkeypatch.setattr(hub_lookup, "DEADLINE_S", 0.05)
    try:
        for number in range(2 * hub_lookup.MAX_LOOKUPS):
            with pytest.raises(ModelError, match="did not answer within") as raised:
                catalogue.inspect(f"{ID}-{number}")
            assert raised.value.field == "model"
        waiting = [t for t in threading.enumerate() if t.name.startswith("hub")]
        assert len(waiting) <= hub_lookup.MAX_LOOKUPS
    finally:
        over.set()
