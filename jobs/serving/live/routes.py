"""Live models over HTTP, for the dashboard, which knows who asks (`ui.workbench_api`)."""

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
from backend.models.foreign_tokenizer import session_of
from backend.models.saving import save
from backend.models.sources.quantized import PackedGroup
from backend.quantization.config import Width
from backend.quantization.grid import QuantizedWeight
from backend.reporter import SilentReporter
from backend.settings import settings
from jobs.serving.client import PERSON, ROLE, EventStream
from jobs.serving.live.answering import LiveAnswering
from jobs.serving.live.models import BrowserState, LivePool, OpenedModel
from jobs.serving.live.requests import PREFIX, ExportBody, LiveBody, TensorBody
from jobs.serving.openai_format import error_body, error_headers, event, read_fields

AtWork = Callable[[], AbstractContextManager[None]]
B = TypeVar("B", TensorBody, ExportBody)


class LiveRoutes:
    """The routes of a pool; `at_work`: counts a request."""

    def __init__(self, pool: LivePool, at_work: AtWork) -> None:
        self.pool, self._at_work = pool, at_work
        self.routes = [
            Route(f"{PREFIX}/answer", self.answer, methods=["POST"]),
            Route(f"{PREFIX}/tensor", partial(self._done, TensorBody, _tensor), methods=["POST"]),
            Route(f"{PREFIX}/export", partial(self._done, ExportBody, _exported), methods=["POST"]),
        ]

    async def answer(self, request: Request) -> Response:
        """The events of a state."""
        try:
            body = read_fields(LiveBody, await request.body())
        except SlimscopeError as error:
            return refused(error)
        person, guest = _person(request)

        async def events() -> AsyncGenerator[bytes]:
            with self._at_work():
                async with aclosing(LiveAnswering(body, person, guest, self.pool).events()) as told:
                    async for happened in told:
                        yield event(happened)

        stream, opened = events(), AsyncExitStack()
        opened.push_async_callback(stream.aclose)
        return EventStream(stream, opened)

    async def _done(
        self,
        kind: type[B],
        work: Callable[[B, OpenedModel, BrowserState], Response],
        request: Request,
    ) -> Response:
        """What a short request comes to, in a thread."""
        person, guest = _person(request)

        def done(body: B) -> Response:
            with (
                self.pool.using(body.model, lambda *_: None) as opened,
                self.pool.state(opened, person, body.browser) as state,
            ):
                self.pool.step(guest, lambda *_: None, lambda: None)
                return work(body, opened, state)

        try:
            body = read_fields(kind, await request.body())
            with self._at_work():
                return await run_in_threadpool(done, body)
        except SlimscopeError as error:
            return refused(error)


def _tensor(body: TensorBody, opened: OpenedModel, state: BrowserState) -> Response:
    """Histogram of a layer as it is in a state. `tails`: all weights, exact zeros, those below and
    above the bins."""
    dense, live = opened.dense, state.live
    asked = opened.asked(body.state)
    form = asked.formats.get(body.name) or dense.checked_format(body.name, DENSE)
    with dense.lock:
        now = live.formats[body.name], live.pruner, live.quantizer
        same = now == (form, asked.pruner, asked.quantizer)
        made = live.origins[body.name] if same else "instant"
        weights = (
            live.stored_weight(body.name)
            if same
            else dense.make_layer(body.name, form, dense.score_of(asked.pruner))
        )
        counts, *outside = layer_histogram(dense, body.name, weights)
    tails = [dense.weight(body.name).numel(), *outside]
    return JSONResponse({"made": made, "counts": counts.tolist(), "tails": tails})


def _exported(body: ExportBody, opened: OpenedModel, state: BrowserState) -> Response:
    asked, live = opened.asked(body.state), state.live
    with state.changing:
        if (asked.formats, asked.pruner, asked.quantizer) != (
            live.formats,
            live.pruner,
            live.quantizer,
        ):
            live.apply(asked.formats, asked.pruner, asked.quantizer)
        # write it; the folder and its files. Raises ConflictError: there is a model of that name;
        # ConfigError: the format cannot hold the formats of the layers
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
        return JSONResponse(
            {"name": body.name, "folder": str(folder), "files": written, "card": CARD}
        )


def _person(request: Request) -> tuple[str, bool]:
    return unquote(request.headers.get(PERSON, "")), request.headers.get(ROLE) != "host"


def refused(error: SlimscopeError) -> Response:
    """An error as the JSON API reports it."""
    parts = {"what": error.what, "why": error.why, "do": error.do, "field": error.field}
    status, _ = error_body(error)
    return JSONResponse({**parts, "others": []}, status, error_headers(error))


def _write_folder(
    format: Any, folder: Path, opened: OpenedModel, live: LiveModel, body: ExportBody
) -> None:
    with live.dense.lock:  # tensors are exchanged, never changed
        weights = {name: live.stored_weight(name) for name in live.dense.layers}
    codes = {name: made for name, made in weights.items() if isinstance(made, QuantizedWeight)}
    dense = live.dense.model
    model: PreTrainedModel = deepcopy(  # which shares all other weights with the dense one
        dense, {id(p): nn.Parameter(p.data, requires_grad=False) for p in dense.parameters()}
    )
    for name, made in weights.items():
        if isinstance(made, torch.Tensor):
            stored_weight = live.dense.layers[name].as_stored(made)
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
        with session_of(opened.tokenizer) as tokenizer:
            save(model, tokenizer, folder, card, live.dense.model.dtype)
        return
    stored = live.dense.model.dtype if format == "dense" else live.dense.scales
    widths = {name: width for name in codes if (width := live.formats[name].width)}
    layout = _layout(format, widths)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored)
    with session_of(opened.tokenizer) as tokenizer:
        export(model, tokenizer, codes, layout, stored, folder, card)


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
