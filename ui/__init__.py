"""The dashboard. It patches internals of Gradio, so other Gradio releases are rejected at
import."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

GRADIO = "6.31"  # the release that ui/gradio_patches.py is tested with


def check_gradio(installed: str) -> None:
    """Exit with one line if the installed Gradio release is not the supported one."""
    if installed.split(".")[:2] != GRADIO.split("."):
        sys.exit(
            f"Slimscope works with Gradio {GRADIO}; Gradio {installed} is installed. "
            f"Run: {sys.executable} -m pip install 'gradio=={GRADIO}.*'"
        )


@contextmanager
def lean_gradio() -> Iterator[None]:
    """Import modules faster inside this block. Gradio 6.31 parses every component's source to write
    a type stub for editors, and imports MCP if it is installed. The dashboard needs neither, and
    both take a quarter of its start. Not thread-safe."""
    find = inspect.getfile

    def find_unless_component(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("Components get no type stub.")
        return find(thing)

    inspect.getfile = find_unless_component  # type: ignore[assignment]
    is_mcp_hidden = sys.modules.setdefault("mcp", None) is None  # type: ignore[arg-type]
    try:
        yield
    finally:
        inspect.getfile = find
        if is_mcp_hidden:
            del sys.modules["mcp"]


check_gradio(version("gradio"))
