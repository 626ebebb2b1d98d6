"""The live model: a format for each layer, changed at will.

    dense = DenseModel(loaded.model, calibration)
    live = LiveModel(dense)
    live.apply(dict.fromkeys(dense.in_blocks, "2:4"))
    for loss in losses(live, windows):         # `measurements`, after each window
        ...
    for done, total, doing in live.refine():   # as a run would make it, block by block
        ...

A newer change cancels what was begun before it, at its next safe point: between passes over
`PREFILL` tokens, in PyTorch between blocks, and while refining between batches and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from backend.decoding.native.model import decoding_dtype
from backend.errors import CancelledError, ConfigError
from backend.live.address import AT_ONCE
from backend.live.dense import DenseModel, Progress, Score
from backend.live.refinement import Refinement
from backend.live.running import LiveWeight, RunningModel
from backend.pruning.pruners.registry import PRUNERS
from backend.quantization.grid import QuantizedWeight
from backend.quantization.registry import QUANTIZERS
from backend.sensitivity.profile import Format

DENSE = Format()
Making = Literal["dense", "instant", "refined"]  # how a layer was made


class LiveModel:
    """One state of a dense model, beside others. `formats`: full name of each layer -> its format.
    `pruner`, `quantizer`: what a run would make them with. `dtype`: of the passes; None: the one
    that is decoded fastest."""

    def __init__(self, dense: DenseModel, dtype: torch.dtype | None = None) -> None:
        self.dense, self.formats = dense, dict.fromkeys(dense.layers, DENSE)
        self.pruner, self.quantizer = AT_ONCE.values()
        name = decoding_dtype("auto", dense.model.device, type(dense.model).__name__)
        self.dtype: torch.dtype = dtype or getattr(torch, name)
        self._made: dict[str, LiveWeight] = {}  # of the layers that are not dense
        self._refined: set[str] = set()
        self._running: RunningModel | None = None
        self._changes = 0

    @property
    def made(self) -> dict[str, Making]:
        """How each layer was made: at once, or as a run makes it, on what the layers before it left
        then."""
        return {
            name: "dense" if form == DENSE else "refined" if self._is_final(name) else "instant"
            for name, form in self.formats.items()
        }

    @property
    def running(self) -> RunningModel:
        """The model as it is now, to write text with while the lock of the dense model is held."""
        with self.dense.lock:
            if self._running is None:
                self._running = RunningModel(self.dense.model, self.dtype)
                changed = {name: form for name, form in self.formats.items() if form != DENSE}
                self._make(self._running, changed, self.dense.score_of(self.pruner))
            return self._running

    @property
    def nbytes(self) -> int:
        """Bytes in memory beside the dense model's."""
        return self._running.nbytes if self._running else 0

    def drop(self) -> None:
        """Give the memory back; whatever is asked next makes the model anew, without what was
        refined."""
        self.cancel()
        with self.dense.lock:
            self._running, self._made, self._refined = None, {}, set()

    def cancel(self) -> None:
        """End what was begun before."""
        self._changes += 1

    def safe_point(self) -> Callable[[], None]:
        """To be called where what was begun now may end: raises `CancelledError` once there was a
        newer change."""
        begun = self._changes

        def stop() -> None:
            if self._changes != begun:
                raise CancelledError

        return stop

    def apply(
        self, formats: Mapping[str, Format | str], pruner: str = "", quantizer: str = ""
    ) -> list[str]:
        """Change the formats of some layers, or what all are made with; the layers that were made
        anew. Raises ConfigError: there is no such layer, format or method, or they do not fit each
        other; then nothing was changed."""
        pruner, quantizer = pruner or self.pruner, quantizer or self.quantizer
        asked = {name: self.dense.refuse(name, form) for name, form in formats.items()}
        for method, there in ((pruner, PRUNERS), (quantizer, QUANTIZERS)):
            if method not in there:
                raise ConfigError(
                    f"There is no method {method[:40]!r}.",
                    f"Those are {', '.join(there)}.",
                    "Choose one.",
                    "method",
                )
        if pruner == "wanda":
            self.dense.require_text()
        self.cancel()
        with self.dense.lock:
            now, score = {**self.formats, **asked}, self.dense.score_of(pruner)
            changed = {name for name, form in asked.items() if form != self.formats[name]}
            if pruner != self.pruner:
                same = score == self.dense.score_of(self.pruner)
                pruned = {name for name, form in self.formats.items() if form.pattern}
                changed |= pruned & self._refined if same else pruned
            if quantizer != self.quantizer:
                changed |= {name for name in self._refined if now[name].width}
            ordered = [name for name in now if name in changed]
            if self._running:
                self._make(self._running, {name: now[name] for name in ordered}, score)
            self.formats, self.pruner, self.quantizer = now, pruner, quantizer
            self._refined -= changed
            return ordered

    def _make(self, running: RunningModel, formats: Mapping[str, Format], score: Score) -> None:
        made = {name: self.dense.made(name, form, score) for name, form in formats.items()}
        running.write(made)
        self._made |= made

    def refine(self) -> Iterator[Progress]:
        """Make all layers that are not yet as a run would; each is exchanged when its block is
        done. Raises ConfigError: there is no calibration text, or the quantizer is for runs only;
        CancelledError: there was a newer change; blocks that are done stay."""
        running, stop = self.running, self.safe_point()
        chosen = {
            name: form
            for name, form in self.formats.items()
            if form != DENSE and not self._is_final(name)
        }
        refinement = Refinement(
            self.dense, chosen, self.pruner, self.quantizer, self.weight, lambda: stop()
        )
        passes = any(x.pattern for x in chosen.values()) + any(x.width for x in chosen.values())
        for done, (doing, weights) in enumerate(refinement.blocks()):
            with self.dense.lock:
                stop()
                if weights:
                    self._made |= weights
                    self._refined |= weights.keys()
                    running.write(weights)
                    self.cancel()  # measurements of what the model was
                    stop = self.safe_point()
            yield done + 1, passes * self.dense.blocks, doing

    def weight(self, name: str) -> Tensor:
        """The weights [out, in] of a layer as they are now, float32."""
        with self.dense.lock:
            found = self.stored(name)
            W = found.dense() if isinstance(found, QuantizedWeight) else found
            return W.to(torch.float32, copy=True)

    def stored(self, name: str) -> LiveWeight:
        """The same in the dtype of the model, or as codes; not to be changed."""
        with self.dense.lock:
            made = self._made.get(name) if self.running else None
            return self.dense.weight(name) if made is None else made

    def _is_final(self, name: str) -> bool:
        """Whether a run would make a layer just so."""
        form = self.formats[name]
        pruned = form.pattern is None or self.pruner == AT_ONCE["pruner"]
        quantized = form.width is None or self.quantizer == AT_ONCE["quantizer"]
        return name in self._refined or name in self.dense.outside or (pruned and quantized)
