"""The models and texts a run reads, known on every machine of a cluster by name and content: a path
means something on one of them only."""

import platform
from collections.abc import Iterator, Mapping
from typing import Any

from backend.errors import DatasetError, ModelError
from backend.files import fingerprint, fingerprint_of
from backend.models.sources.spec import on_disk
from backend.text import files


def inputs_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Paths of models and names of local texts in a config -> the fingerprint of what is there.
    What every machine finds by itself, such as models of the Hub, is left out."""
    found = {}
    for text in _texts(config):
        if text.startswith(("/", "~")):
            try:
                found[text] = fingerprint_of(on_disk(text))
            except (ModelError, OSError):  # no model: a path of something else
                continue
        elif text.startswith(files.PREFIX) and (paths := files.paths(_name(text))):
            found[text] = fingerprint(paths)
    return found


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _name(text: str) -> str:
    return text.removeprefix(files.PREFIX)


def check_inputs(expected: Mapping[str, str]) -> None:
    """Raise `ModelError` or `DatasetError` unless a run finds its inputs on this machine."""
    for text, sha256 in expected.items():
        if not text.startswith(files.PREFIX):
            on_disk(text)
        elif not (paths := files.paths(_name(text))) or fingerprint(paths) != sha256:
            what = "files of that name that differ" if paths else "no file of that name"
            raise DatasetError(
                f"{platform.node()} has no text {_name(text)}.",
                f"There are {what} from those the run was submitted with.",
                "Copy them into its SLIMSCOPE_TEXT_DIR, and resume.",
            )
