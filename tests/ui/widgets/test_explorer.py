"""What pages that look into one run share: the selection, its controls, and reading by mark."""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import pytest

from backend.settings import Settings
from tests.ui.lab import asked
from ui.widgets import explorer as explorer_module
from ui.widgets.explorer import (
    Explorer,
    Selection,
    cached_by,
    control_updates,
)
from ui.widgets.panel import Outputs, Updates


@dataclass(frozen=True)
class Looks(Selection):
    stage: str = ""
    show: tuple[str, ...] = ()
    step: str = ""


OFFERS: dict[str, dict[str, Any]] = {
    "run": {"choices": [("a", "a")]},
    "stage": {"choices": []},
    "show": {},
    "step": {"minimum": 0, "maximum": 9},
}


def test_address_and_controls_give_the_same_selection() -> None:
    expected = Looks("sds-0001", "dense", ("dense", "sds"), "4")
    address = asked(run="sds-0001", stage="dense", show="dense,,sds", step="4")
    assert Looks.from_address(address) == expected
    assert Looks.from_controls(["sds-0001", "dense", ["dense", "sds"], 4]) == expected
    assert Looks.from_controls([None] * 4) == Looks() == Looks.from_address(asked(run="<b>"))
    selection = Looks("a", "dense", ("dense",), "4")
    shown = control_updates(selection, replace(selection, step="0"), OFFERS, OFFERS)
    assert shown["step"]["value"] == 4 and "maximum" not in shown["step"]
    assert all("value" not in shown[name] for name in ("run", "stage", "show"))
    assert all("choices" not in update for update in shown.values())
    opened = control_updates(selection, Looks(), OFFERS)
    assert opened["show"]["value"] == ["dense"] and opened["run"]["choices"] == [("a", "a")]
    assert {name for name, update in opened.items() if "value" in update} == {*OFFERS}


def test_without_a_view_nothing_is_updated() -> None:
    handlers: list[Any] = []

    def event(handler: Any, *_: Any, **__: Any) -> Any:
        handlers.append(handler)
        return gr.on(fn=None)

    def handler(view: str) -> Updates:
        return {"stage": view}

    with gr.Blocks():
        outputs = Outputs({name: gr.Textbox() for name in Looks.names()})
        explorer = Explorer(outputs, Looks, lambda selection: selection.run or None)
        explorer.on(event, handler)
    assert handlers[0]("sds-0001", None, None, None)[1] == "sds-0001"
    assert handlers[0](None, None, None, None) == [gr.skip()] * 4


def test_a_page_that_is_being_opened_is_not_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its controls are empty still: a refresh would show the newest run instead of the one in the
    address."""
    wired: list[Any] = []
    monkeypatch.setattr(explorer_module, "on_change", lambda update, *_: wired.append(update))
    monkeypatch.setattr(explorer_module, "on_load", lambda load, *_: wired.append(load))
    monkeypatch.setattr(Explorer, "_keep", lambda self, event: None)
    with gr.Blocks():
        outputs = Outputs({name: gr.Textbox() for name in (*Looks.names(), "seen")})
        explorer = Explorer(outputs, Looks, lambda selection: selection.run or None)
        explorer.on_change(lambda seen, selection: {"stage": f"{seen} {selection.run}"})
        explorer.on_load(lambda request: {"run": "sds-0001"})
    refresh, load = wired
    assert refresh(None, None, None, None, None) == [gr.skip()] * 5
    opened = load(asked())
    assert opened[0] == "sds-0001" and opened[-1] == {}
    assert refresh(opened[-1], "sds-0001", None, None, None)[1] == "None sds-0001"


def test_a_run_is_read_once_until_its_mark_changes(current: Settings) -> None:
    stored, reads = {"a": 1, "empty": 0}, []

    @cached_by(lambda run: (run, stored[run]) if run in stored else None)
    def read(run: str) -> int:
        reads.append(run)
        return stored[run]

    assert (read("a"), read("a"), read("empty"), read("none"), read("")) == (1, 1, None, None, None)
    stored["a"] = 2
    assert read("a") == 2 and reads == ["a", "a"]
