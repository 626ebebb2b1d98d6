"""The dashboard. It replaces internals of Gradio; another release of it is refused at once."""

import sys
from importlib.metadata import version

GRADIO = "6.31"  # what ui/gradio_patches.py is tested with


def check_gradio(installed: str) -> None:
    """Exits with one line if the installed release of Gradio is not the supported one."""
    if installed.split(".")[:2] != GRADIO.split("."):
        sys.exit(
            f"Slimscope works with Gradio {GRADIO}; Gradio {installed} is installed. "
            f"Run: {sys.executable} -m pip install 'gradio=={GRADIO}.*'"
        )


check_gradio(version("gradio"))
