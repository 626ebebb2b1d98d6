"""Gives the browser a file without putting one anywhere another visitor could reach."""

from __future__ import annotations

import base64
import time
from typing import Any

import gradio as gr

from backend.errors import NotFoundError
from backend.settings import settings
from ui.format import size

AT_MOST = 16_000_000  # bytes
JS = """
watch('value', () => {
  const file = props.value;
  if (!file || !file.data) return;
  const bytes = Uint8Array.from(atob(file.data), (c) => c.charCodeAt(0));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes]));
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
"""


class Download(gr.HTML):
    """Invisible; a handler that returns `contents(...)` to it starts a download."""

    def __init__(self, **options: Any) -> None:
        super().__init__(None, html_template="", js_on_load=JS, elem_classes="saver", **options)


def file_payload(name: str, data: bytes) -> dict[str, Any]:
    """A file of that name; `at` makes a second download of the same file a new one."""
    return {"name": name, "data": base64.b64encode(data).decode(), "at": time.time_ns()}


def small_file(path: str, name: str = "") -> dict[str, Any]:
    """A file below the artefact folder, called `name` or as it is.

    Raises:
        NotFound: there is no such file, it lies elsewhere, or it is too large.
    """
    root = settings().artifacts.resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        raise NotFoundError("There is no such file.", "It was moved or deleted.")
    if file.stat().st_size > AT_MOST:
        raise NotFoundError(
            f"{file.name} is {size(file.stat().st_size)}.",
            f"The browser is given at most {size(AT_MOST)}.",
            "Copy it from the artefact folder.",
        )
    return file_payload(name or file.name, file.read_bytes())
