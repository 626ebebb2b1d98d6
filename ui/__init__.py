"""The dashboard. It replaces internals of Gradio; another release of it is refused at once."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

GRADIO = "6.31"  # what ui/gradio_patches.py is tested with


def check_gradio(installed: str) -> None:
    """Exits with one line if the installed release of Gradio is not the supported one."""
    if installed.split(".")[:2] != GRADIO.split("."):
        sys.exit(
            f"Slimscope works with Gradio {GRADIO}; Gradio {installed} is installed. "
            f"Run: {sys.executable} -m pip install 'gradio=={GRADIO}.*'"
        )


@contextmanager
def lean_gradio() -> Iterator[None]:
    """Modules imported in this block start faster. Gradio 6.31 parses every component whose file it
    finds, to write a stub for editors beside it, and imports MCP where that is installed: a quarter
    of the dashboard's start, and of no use to it. For one thread at a time."""
    find = inspect.getfile

    def found(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("It gets no stub.")
        return find(thing)

    inspect.getfile = found  # type: ignore[assignment]
    hidden = sys.modules.setdefault("mcp", None) is None  # type: ignore[arg-type]
    try:
        yield
    finally:
        inspect.getfile = find
        if hidden:
            del sys.modules["mcp"]


check_gradio(version("gradio"))
