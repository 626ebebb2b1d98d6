"""Downloads: files handed to the browser without storing them where other visitors could reach."""

import base64
import time
from pathlib import Path
from typing import Any

import gradio as gr

from backend.errors import NotFoundError
from ui.format import size

AT_MOST = 16_000_000  # bytes


class Download(gr.HTML):
    """Invisible; a handler that returns `file_payload(...)` to it starts a download."""

    def __init__(self, **options: Any) -> None:  # Gradio makes it anew at each update
        script = "slimscope.download(props, watch)"
        super().__init__(None, html_template="", js_on_load=script, elem_classes="saver", **options)


def file_payload(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "data": base64.b64encode(data).decode(), "at": time.time_ns()}


def small_file(file: Path) -> dict[str, Any]:
    """File as a download. Raises `NotFoundError` if too large."""
    if file.stat().st_size > AT_MOST:
        raise NotFoundError(
            f"{file.name} is {size(file.stat().st_size)}.",
            f"Files of at most {size(AT_MOST)} can be downloaded.",
            "Copy it from the artefact folder.",
        )
    return file_payload(file.name, file.read_bytes())
