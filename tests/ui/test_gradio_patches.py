"""A page view is cheap to remember, and what it was sent is its own."""

from __future__ import annotations

import asyncio

import gradio as gr
import pytest
from gradio.state_holder import StateHolder

from ui.gradio_patches import SmallSession


@pytest.fixture
def holder(built: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> StateHolder:
    monkeypatch.setattr(built, "state_holder", None, raising=False)
    made = StateHolder()
    made.set_blocks(built)
    return made


def a_textbox(built: gr.Blocks) -> int:
    return next(i for i, block in built.blocks.items() if isinstance(block, gr.Textbox))


def test_a_page_view_describes_no_component(holder: StateHolder, built: gr.Blocks) -> None:
    session = holder["one view"]
    assert not session.config_values
    assert all(session[i] is block for i, block in built.blocks.items() if not block.stateful)
    place = a_textbox(built)
    with gr.Blocks():
        changed = gr.Textbox(label="sent to one")
    holder["one view"][place] = changed
    assert holder["one view"][place] is changed
    assert {*holder["one view"].config_values} == {place}
    assert holder["another"][place] is built.blocks[place] is not changed


def test_a_state_is_its_own(built: gr.Blocks) -> None:
    """No page of ours has one; a page of a plugin may."""
    with gr.Blocks() as page:
        place = gr.State()._id
    holder = StateHolder()
    holder.set_blocks(page)
    holder["one view"][place] = ["seen"]
    assert holder["one view"][place] == ["seen"]
    assert holder["another"][place] is None


def test_a_page_that_is_updated_all_day_stays_as_small_as_it_was() -> None:
    with gr.Blocks() as page:
        box, told = gr.Dropdown(["a"], value="a"), gr.Textbox()
        page.load(lambda given: (gr.update(choices=["a", "b"]), given), box, [box, told])
    session, updated = SmallSession(page), next(iter(page.fns.values()))
    for _ in range(3):
        asyncio.run(page.process_api(updated, ["a"], session))
    assert session.blocks_config.blocks.keys() == page.blocks.keys()
    assert session[box._id].choices == [("a", "a"), ("b", "b")] != box.choices
