"""Model and text inputs of a run, identified by name and content on every machine of a cluster:
a path is only meaningful on one machine."""

import platform
from collections.abc import Iterator, Mapping
from typing import Any

from backend.errors import DatasetError, ModelError
from backend.files import fingerprint, fingerprint_of
from backend.models.sources.spec import resolve_model_path
from backend.text import files


def inputs_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Map the model paths and local text names in a config to fingerprints of their files. Inputs
    that every machine can fetch itself, such as Hub models, are left out."""
    fingerprints = {}
    for text in _texts(config):
        if text.startswith(("/", "~")):
            try:
                fingerprints[text] = fingerprint_of(resolve_model_path(text))
            except (ModelError, OSError):  # the path is not a model
                continue
        elif text.startswith(files.PREFIX) and (paths := files.corpus_paths(_name(text))):
            fingerprints[text] = fingerprint(paths)
    return fingerprints


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
    """Raise `ModelError` or `DatasetError` unless this machine has the inputs of a run."""
    for text, sha256 in expected.items():
        if not text.startswith(files.PREFIX):
            resolve_model_path(text)
        elif not (paths := files.corpus_paths(_name(text))) or fingerprint(paths) != sha256:
            why = (
                "Its files differ from those the run was submitted with."
                if paths
                else "There are no files with this name."
            )
            raise DatasetError(
                f"{platform.node()} does not have the text {_name(text)}.",
                why,
                "Copy the files into its SLIMSCOPE_TEXT_DIR, then resume the run.",
            )
