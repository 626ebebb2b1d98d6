"""What the process that others are forked from has imported: all of our code, torch and Gradio with
it."""

from __future__ import annotations

import importlib
import pkgutil

import transformers.models.llama.modeling_llama  # noqa: F401  (of the toy model)

import backend
import jobs
import ui

for package in (backend, jobs, ui):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith(("__main__", ".env")) and ".migrations." not in module.name:
            importlib.import_module(module.name)
