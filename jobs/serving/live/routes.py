"""HTTP routes of live models, for the dashboard, which authenticates the caller (`ui.live_api`)."""

import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, aclosing
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import torch
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import nn
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import ConflictError, SlimscopeError, for_field
from backend.export.card import CARD, copy_terms, live_card, origin_of
from backend.export.formats import Layout, read_layout
from backend.export.gguf import types
from backend.export.gguf.writing import write_gguf
from backend.export.writing import export
from backend.live.measurements import layer_histogram
from backend.live.model import DENSE, LiveModel
from backend.models.foreign_tokenizer import tokenizer_session
from backend.models.saving import save
from backend.models.sources.quantized import PackedGroup
from backend.quantization.config import IntegerFormat
from backend.quantization.grid import QuantizedWeight
from backend.reporter import SilentReporter
from backend.settings import settings
from jobs.serving.client import PERSON_HEADER, ROLE_HEADER, EventStream
from jobs.serving.live.answering import LiveWorker
from jobs.serving.live.models import BrowserState, LivePool, OpenedModel
from jobs.serving.live.requests import PREFIX, ExportBody, LiveBody, TensorBody
from jobs.serving.openai_format import error_body, error_headers, event, read_fields

RequestCounter = Callable[[], AbstractContextManager[None]]
B = TypeVar("B", TensorBody, ExportBody)


class LiveRoutes:
    """Routes of a pool. `counting_request`: context that counts a request as in progress."""

    def __init__(self, pool: LivePool, counting_request: RequestCounter) -> None:
        self.pool, self._counting_request = pool, counting_request
        self.routes = [
            Route(f"{PREFIX}/answer", self.answer, methods=["POST"]),
            Route(f"{PREFIX}/tensor", partial(self._handle, TensorBody, _tensor), methods=["POST"]),
            Route(f"{PREFIX}/export", partial(self._handle, ExportBody, _export), methods=["POST"]),
        ]

    async def answer(self, request: Request) -> Response:
        """Stream the events of a state."""
        try:
            body = read_fields(LiveBody, await request.body())
        except SlimscopeError as error:
            return error_response(error)
        person, guest = _caller(request)

        async def events() -> AsyncGenerator[bytes]:
            worker = LiveWorker(body, person, guest, self.pool)
            with self._counting_request():
                async with aclosing(worker.events()) as live_events:
                    async for live_event in live_events:
                        yield event(live_event)

        stream, resources = events(), AsyncExitStack()
        resources.push_async_callback(stream.aclose)
        return EventStream(stream, resources)

    async def _handle(
        self,
        kind: type[B],
        work: Callable[[B, OpenedModel, BrowserState], Response],
        request: Request,
    ) -> Response:
        """Handle a short request in a thread."""
        person, guest = _caller(request)

        def handle(body: B) -> Response:
            with (
                self.pool.using(body.model, lambda *_: None) as opened,
                self.pool.state(opened, person, body.browser) as state,
            ):
                self.pool.before_step(guest, lambda *_: None, lambda: None)
                return work(body, opened, state)

        try:
            body = read_fields(kind, await request.body())
            with self._counting_request():
                return await run_in_threadpool(handle, body)
        except SlimscopeError as error:
            return error_response(error)


def _tensor(body: TensorBody, opened: OpenedModel, state: BrowserState) -> Response:
    """Respond with the histogram of a layer in a state. `tails`: number of all weights, of exact
    zeros, and of weights below and above the bins."""
    dense, live = opened.dense, state.live
    requested = opened.parse_state(body.state)
    layer_format = requested.formats.get(body.name) or dense.checked_format(body.name, DENSE)
    with dense.lock:
        current = live.formats[body.name], live.pruner, live.quantizer
        if current == (layer_format, requested.pruner, requested.quantizer):
            origin, weights = live.origins[body.name], live.stored_weight(body.name)
        else:
            score = dense.score_of(requested.pruner)
            origin, weights = "instant", dense.make_layer(body.name, layer_format, score)
        counts, *outside = layer_histogram(dense, body.name, weights)
    tails = [dense.weight(body.name).numel(), *outside]
    return JSONResponse({"made": origin, "counts": counts.tolist(), "tails": tails})


def _export(body: ExportBody, opened: OpenedModel, state: BrowserState) -> Response:
    """Write a state as a model; respond with its folder and files. Raises ConflictError: a model of
    that name exists; ConfigError: the export format cannot hold the formats of the layers."""
    requested, live = opened.parse_state(body.state), state.live
    with state.changing:
        target_state = requested.formats, requested.pruner, requested.quantizer
        if target_state != (live.formats, live.pruner, live.quantizer):
            live.apply(*target_state)
        root, files = settings().root / "models", Checkpoints(settings().root / "models")
        if (root / body.name).exists():
            raise ConflictError(
                "The model was not written.",
                f"A model called {body.name} already exists.",
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
        entries = [
            {"name": file.name, "bytes": file.stat().st_size} for file in sorted(folder.iterdir())
        ]
        return JSONResponse(
            {"name": body.name, "folder": str(folder), "files": entries, "card": CARD}
        )


def _caller(request: Request) -> tuple[str, bool]:
    """Return the name of the caller, and True for a guest."""
    is_guest = request.headers.get(ROLE_HEADER) != "host"
    return unquote(request.headers.get(PERSON_HEADER, "")), is_guest


def error_response(error: SlimscopeError) -> Response:
    """Return an error in the form of the JSON API."""
    parts = {"what": error.what, "why": error.why, "do": error.do, "field": error.field}
    status, _ = error_body(error)
    return JSONResponse({**parts, "others": []}, status, error_headers(error))


def _write_folder(
    format: Any, folder: Path, opened: OpenedModel, live: LiveModel, body: ExportBody
) -> None:
    """Write the weights of a live model, its tokenizer and its model card to a folder."""
    with live.dense.lock:  # later changes replace tensors and never write into them
        weights = {name: live.stored_weight(name) for name in live.dense.layers}
    codes = {
        name: weight for name, weight in weights.items() if isinstance(weight, QuantizedWeight)
    }
    dense = live.dense.model
    model: PreTrainedModel = deepcopy(  # shares its parameters with the dense model
        dense, {id(p): nn.Parameter(p.data, requires_grad=False) for p in dense.parameters()}
    )
    for name, weight in weights.items():
        if isinstance(weight, torch.Tensor):
            stored_weight = live.dense.layers[name].as_stored(weight)
            model.get_submodule(name).get_parameter("weight").data = stored_weight
    card = live_card(
        body.name,
        opened.base.facts.title,
        origin_of(opened.base.source),
        opened.base.facts.note,
        Counter(map(str, live.formats.values())),
        Counter(live.origins.values()),
        (live.pruner, live.quantizer),
        f"{live.dense.identity}~{body.state.partition('~')[2]}",
    )
    if not codes:
        with tokenizer_session(opened.tokenizer) as tokenizer:
            save(model, tokenizer, folder, card, live.dense.model.dtype)
        return
    dtype = live.dense.model.dtype if format == "dense" else live.dense.scales
    widths = {name: width for name in codes if (width := live.formats[name].width)}
    layout = _layout(format, widths)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    with tokenizer_session(opened.tokenizer) as tokenizer:
        export(model, tokenizer, codes, layout, dtype, folder, card)


def _layout(format: Any, widths: Mapping[str, IntegerFormat]) -> Layout:
    """Return the export layout: the settings of most layers, and groups of layers with other
    settings."""
    groups: dict[IntegerFormat, list[str]] = {}
    for name, width in widths.items():
        groups.setdefault(width, []).append(name)
    (common, _), *exceptions = sorted(groups.items(), key=lambda pair: -len(pair[1]))
    packed = (PackedGroup(tuple(names), width.bits, width.group) for width, names in exceptions)
    return Layout(format, common.bits, common.group, "symmetric", tuple(packed))


def _write_gguf(source: Path, folder: Path, title: str, dtype: str) -> None:
    """Convert the model in `source` to one GGUF file."""
    packed = "quantization_config" in (source / "config.json").read_text("utf-8")
    layout = read_layout(source) if packed else None
    with for_field("format"):
        type = types.choose_type("auto", layout, dtype)
    file = folder / f"{title}-{type}.gguf"
    write_gguf(source, file, type, packed, title, SilentReporter(), "auto")
    (folder / CARD).write_text((source / CARD).read_text("utf-8"), "utf-8")
