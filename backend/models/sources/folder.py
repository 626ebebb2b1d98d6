"""Checks of a model folder before anything in it is used. Does not import torch."""

from __future__ import annotations

from pathlib import Path

from backend.errors import ModelError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def check_folder(folder: Path) -> None:
    """Check that a folder holds a plain model.

    Raises:
        ModelError: it contains an adapter, or links to files outside.
    """
    check_no_adapter(folder)
    check_links(folder)


def check_no_adapter(folder: Path) -> None:
    """Check that there is no adapter beside the weights: transformers attaches it without asking.
    The layers it wraps then have other names, under which their weights are also saved.

    Raises:
        ModelError: there is one.
    """
    if found := next((name for name in ADAPTER_FILES if (folder / name).exists()), None):
        raise ModelError(
            f"The model in {folder} has an adapter that is not merged.",
            f"{found} lies beside its weights, and an adapter changes the layers of the model.",
            "Merge it with peft (model.merge_and_unload()), save the result to a new folder and "
            "choose that one. To use the model without the adapter, move the adapter's files away.",
            field="model",
        )


def check_links(folder: Path) -> None:
    """Check that no entry of the folder is a link out of it. Snapshots of the Hub consist of links
    to the blobs of the same repository, `models--ORG--NAME`.

    Raises:
        ModelError: names the link.
    """
    real = folder.resolve()
    root = real.parents[1] if real.parent.name == "snapshots" else real
    for path in folder.iterdir():
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ModelError(
                f"The model in {folder} may not be read.",
                f"{path.name} is a link to a file outside the folder.",
                "Copy the file into the folder.",
                field="model",
            )
