"""A live model written as it is: a folder of the data folder's own models, with a card that says
how it was made."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import ConflictError, for_field
from backend.export.card import CARD, copy_terms, live_card, origin_of
from backend.export.formats import Layout, read_layout
from backend.export.gguf import types
from backend.export.gguf.writing import write_gguf
from backend.export.writing import export
from backend.live.model import LiveModel
from backend.models.saving import save
from backend.models.sources.quantized import PackedGroup
from backend.quantization.config import Width
from backend.quantization.grid import QuantizedWeight
from backend.reporter import SilentReporter
from backend.settings import settings
from jobs.serving.live.models import OpenedModel
from jobs.serving.live.requests import ExportBody


def write_live(body: ExportBody, opened: OpenedModel, live: LiveModel) -> dict[str, Any]:
    """Write it; the folder and its files. Raises ConflictError: there is a model of that name;
    ConfigError: the format cannot hold the formats of the layers."""
    root, files = settings().root / "models", Checkpoints(settings().root / "models")
    if (root / body.name).exists():
        raise ConflictError(
            "The model was not written.",
            f"There is a model called {body.name}.",
            "Choose another name.",
            "name",
        )
    with files.write(body.name) as draft:
        if body.format == "gguf":
            with tempfile.TemporaryDirectory(dir=settings().root) as source:
                _write_folder("slimscope", Path(source), opened, live, body)
                _write_gguf(Path(source), draft, body.name, opened.base.facts.dtype)
        else:
            _write_folder(body.format, draft, opened, live, body)
        copy_terms(origin_of(opened.base.source), draft)
    folder = root / body.name
    written = [{"name": x.name, "bytes": x.stat().st_size} for x in sorted(folder.iterdir())]
    return {"name": body.name, "folder": str(folder), "files": written, "card": CARD}


def _write_folder(
    format: Any, folder: Path, opened: OpenedModel, live: LiveModel, body: ExportBody
) -> None:
    with live.dense.lock:  # tensors are exchanged, never changed
        weights = {name: live.stored(name) for name in live.dense.layers}
    codes = {name: made for name, made in weights.items() if isinstance(made, QuantizedWeight)}
    model = _with_weights(live, weights)
    card = live_card(
        body.name,
        opened.base.facts.title,
        origin_of(opened.base.source),
        opened.base.facts.note,
        Counter(map(str, live.formats.values())),
        Counter(live.made.values()),
        (live.pruner, live.quantizer),
        f"{live.dense.identity}~{body.state.partition('~')[2]}",
    )
    if not codes:
        save(model, opened.tokenizer, folder, card, live.dense.model.dtype)
        return
    stored = live.dense.model.dtype if format == "dense" else live.dense.scales
    widths = {name: width for name in codes if (width := live.formats[name].width)}
    layout = _layout(format, widths)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored)
    export(model, opened.tokenizer, codes, layout, stored, folder, card)


def _with_weights(live: LiveModel, weights: dict[str, Any]) -> PreTrainedModel:
    """A model with these weights, which shares all others with the dense one."""
    dense = live.dense.model
    model: PreTrainedModel = deepcopy(
        dense, {id(p): nn.Parameter(p.data, requires_grad=False) for p in dense.parameters()}
    )
    for name, made in weights.items():
        if isinstance(made, torch.Tensor):
            layer = live.dense.layers[name]
            model.get_submodule(name).get_parameter("weight").data = layer.as_stored(made)
    return model


def _layout(format: Any, widths: Mapping[str, Width]) -> Layout:
    """The settings that most layers have, and those of others."""
    groups: dict[Width, list[str]] = {}
    for name, width in widths.items():
        groups.setdefault(width, []).append(name)
    (first, _), *others = sorted(groups.items(), key=lambda pair: -len(pair[1]))
    packed = (PackedGroup(tuple(names), x.bits, x.group) for x, names in others)
    return Layout(format, first.bits, first.group, "symmetric", tuple(packed))


def _write_gguf(source: Path, folder: Path, title: str, dtype: str) -> None:
    packed = "quantization_config" in (source / "config.json").read_text("utf-8")
    layout = read_layout(source) if packed else None
    with for_field("format"):
        type = types.choose_type("auto", layout, dtype)
    file = folder / f"{title}-{type}.gguf"
    write_gguf(source, file, type, packed, title, SilentReporter(), "auto")
    (folder / CARD).write_text((source / CARD).read_text("utf-8"), "utf-8")
