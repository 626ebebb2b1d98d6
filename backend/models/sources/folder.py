"""Checks of a model folder before anything in it is used. Does not import torch."""

from __future__ import annotations

from pathlib import Path

from backend.errors import ModelError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def check_folder(folder: Path) -> None:
    """Check that a folder holds a plain model.

    Raises:
        ModelError: it contains an adapter.
    """
    check_no_adapter(folder)


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
