"""Gradio's internals as they are replaced, of the one release whose internals we know."""

import asyncio
import importlib
import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import gradio as gr
import pytest
from gradio.state_holder import StateHolder
from packaging.requirements import Requirement

from tests.ui.visits import Visit
from ui import GRADIO, lean_gradio
from ui.gradio_patches import (
    BUILD_PATH_LIB,
    LOADER_LOOPS,
    SmallSession,
    loader_routes,
    number_functions,
)

ROOT = Path(__file__).parents[2]


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


def test_functions_of_other_pages_or_of_another_version_have_other_numbers() -> None:
    def numbers(version: str, *, more: bool = False) -> list[int]:
        with gr.Blocks() as page:
            box = gr.Textbox()
            if more:
                box.submit(len, box, box)
            box.change(str, box, box).then(str, box, box)
        number_functions(page, version)
        first, *_ = page.fns
        assert [f._id - first for f in page.fns.values()] == [*range(len(page.fns))]
        *_, last = page.fns.values()
        assert last.trigger_after == last._id - 1 and page.default_config.fn_id == last._id + 1
        return [*page.fns]

    assert numbers("1") == numbers("1")
    assert not {*numbers("1")} & {*numbers("2")} and not {*numbers("1")} & {
        *numbers("1", more=True)
    }


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


def test_the_declared_gradio_is_the_one_that_is_replaced() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (gradio,) = (each for each in map(Requirement, declared) if each.name == "gradio")
    major, minor = map(int, GRADIO.split("."))
    versions = [f"{major}.{minor - 1}.9", f"{GRADIO}.0", f"{GRADIO}.9", f"{major}.{minor + 1}.0"]
    assert [*gradio.specifier.filter(versions)] == [f"{GRADIO}.0", f"{GRADIO}.9"]


def test_another_gradio_is_refused_in_one_line(tmp_path: Path) -> None:
    metadata = tmp_path / "gradio-6.40.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: gradio\nVersion: 6.40.1\n")
    done = subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "Gradio 6.40.1 is installed" in done.stderr and f"gradio=={GRADIO}.*" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_loading_indicator_ends_its_loops(visit: Visit) -> None:
    (route,) = loader_routes()
    file = Path(BUILD_PATH_LIB, Path(route.path).name)
    served, original = visit().get(route.path), file.read_text()
    assert served.status_code == 200 and served.headers["content-type"].startswith(
        "text/javascript"
    )
    for loop in LOADER_LOOPS:
        assert len(loop.findall(original)) == 1 and not loop.search(served.text)
    assert len(original) - 40 < len(served.text) < len(original)


def test_components_get_no_stub_and_mcp_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mcp", raising=False)
    find = inspect.getfile
    for name in ("lean", "usual"):
        (tmp_path / f"{name}_box.py").write_text(
            "import gradio as gr\n\n\nclass Box(gr.HTML):\n    EVENTS = ['change']\n"
        )
    with lean_gradio():
        lean = importlib.import_module("lean_box")
        assert inspect.getfile(Path) == find(Path)
        with pytest.raises(ImportError):
            importlib.import_module("mcp")
    importlib.import_module("usual_box")  # Gradio still writes stubs, and looks for this file
    assert [stub.name for stub in tmp_path.glob("*.pyi")] == ["usual_box.pyi"]
    assert "change" in vars(lean.Box) and inspect.getfile is find and "mcp" not in sys.modules
    monkeypatch.setitem(sys.modules, "mcp", lean)  # one that is there stays
    with lean_gradio():
        assert importlib.import_module("mcp") is lean
    assert sys.modules["mcp"] is lean


def test_gradio_can_make_our_components_anew_as_in_an_update(
    built: gr.Blocks,
) -> None:
    ours = {
        type(each): each for each in built.blocks.values() if type(each).__module__[:3] == "ui."
    }
    assert {"Download", "HtmlPanel", "PlotlyView"} < {kind.__name__ for kind in ours}
    for kind, block in ours.items():
        assert isinstance(kind(**block.constructor_args | {"render": False}), kind)
