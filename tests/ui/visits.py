"""The real dashboard and those who visit it, for the tests of roles, doors and API."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio.routes import App
from starlette.testclient import TestClient

from backend.settings import Settings, settings
from tests.gates import nothing_asked
from ui.security import auth

TOKEN = "a-token-for-the-tests"
OTHER = "10.0.0.7"  # another machine
SITE = "http://127.0.0.1:7860"
Visit = Callable[..., TestClient]


@pytest.fixture(scope="module")
def blocks(served: gr.Blocks) -> gr.Blocks:
    """The dashboard; the tests of a process share it."""
    return served


@pytest.fixture(scope="module")
def web(blocks: gr.Blocks) -> App:
    return blocks.app


@pytest.fixture
def visit(web: App, seeded: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visit]:
    """A browser, or a program, at some address; nothing is started, and nothing was asked yet."""
    nothing_asked(monkeypatch)
    auth.token.cache_clear()

    def arrive(client: str = "127.0.0.1", **headers: str) -> TestClient:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return TestClient(
            web, base_url=SITE, client=(client, 1), headers=names, follow_redirects=False
        )

    yield arrive
    auth.token.cache_clear()


@pytest.fixture
def shared(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> Visit:
    """The same dashboard, reachable from other machines, whose guests only look."""
    set_up(monkeypatch, HOST="0.0.0.0", HOST_TOKEN=TOKEN, GUEST_ANSWERS="0")
    return visit


@pytest.fixture
def open_to_guests(shared: Visit, monkeypatch: pytest.MonkeyPatch) -> Visit:
    """The same, where guests may add small runs."""
    set_up(monkeypatch, GUEST_RUNS="2", GUEST_SECONDS="300", GUEST_GB="4")
    return shared


def set_up(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Sets SLIMSCOPE_ variables."""
    for name, value in values.items():
        monkeypatch.setenv(f"SLIMSCOPE_{name}", value)
    settings.cache_clear()
    auth.token.cache_clear()


def event_of(web: App, elem_id: str, event: str) -> int:
    """The number under which Gradio knows what happens when `event` is raised on a component."""
    config = web.get_blocks().config
    ids = {c["id"] for c in config["components"] if c["props"].get("elem_id") == elem_id}
    found = (
        d["id"]
        for d in config["dependencies"]
        if set(map(tuple, d["targets"])) & {(i, event) for i in ids}
    )
    return next(found)


def unpacked(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a binary for a page's scripts."""
    start = 4 + int.from_bytes(content[:4], "little")
    assert start % 8 == 0, "a browser reads numbers of eight bytes where they are"
    header = json.loads(content[4:start])
    arrays = {
        name: np.frombuffer(content, f"<{kind}", math.prod(shape), start + at).reshape(shape)
        for name, (kind, at, shape) in header["arrays"].items()
    }
    return header, arrays
