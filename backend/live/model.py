"""Live model, in which the format of each layer can be changed at any time.

    dense = DenseModel(loaded.model, calibration)
    live = LiveModel(dense)
    live.apply(dict.fromkeys(dense.in_blocks, "2:4"))
    for loss in losses(live, windows):            # `measurements`, after each window
        ...
    for done, total, activity in live.refine():   # block by block, as in a run
        ...

A change cancels earlier work at its next safe point: between passes over `PREFILL` tokens, between
blocks in PyTorch, and between products and layers during refinement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from backend.decoding.native.model import decoding_dtype
from backend.errors import CancelledError, ConfigError
from backend.live.address import INSTANT_METHODS
from backend.live.dense import DenseModel, Progress, Score
from backend.live.refinement import Refinement
from backend.live.running import LiveWeight, RunningModel
from backend.pruning.pruners.registry import PRUNERS
from backend.quantization.grid import QuantizedWeight
from backend.quantization.registry import QUANTIZERS
from backend.sensitivity.profile import Format

DENSE = Format()
Origin = Literal["dense", "instant", "refined"]


class LiveModel:
    """One state of a dense model; several live models can share a dense model.

    Args:
        dense: dense model.
        dtype: dtype of the forward passes; None for the dtype that decodes fastest.

    Attributes:
        formats: full layer name -> format.
        pruner: pruner that a run would use.
        quantizer: quantizer that a run would use.
    """

    def __init__(self, dense: DenseModel, dtype: torch.dtype | None = None) -> None:
        self.dense, self.formats = dense, dict.fromkeys(dense.layers, DENSE)
        self.pruner, self.quantizer = INSTANT_METHODS.values()
        name = decoding_dtype("auto", dense.model.device, type(dense.model).__name__)
        self.dtype: torch.dtype = dtype or getattr(torch, name)
        self._weights: dict[str, LiveWeight] = {}  # weights of the layers that are not dense
        self._refined: set[str] = set()
        self._running: RunningModel | None = None
        self._changes = 0

    @property
    def origins(self) -> dict[str, Origin]:
        """Origin of each layer: dense, made instantly, or refined as in a run (with the inputs at
        that time)."""
        return {
            name: "dense" if fmt == DENSE else "refined" if self._is_final(name) else "instant"
            for name, fmt in self.formats.items()
        }

    @property
    def running(self) -> RunningModel:
        """Model with the current weights. Callers hold the lock of the dense model to run it."""
        with self.dense.lock:
            if self._running is None:
                self._running = RunningModel(self.dense.model, self.dtype)
                changed = {name: fmt for name, fmt in self.formats.items() if fmt != DENSE}
                self._make_layers(self._running, changed, self.dense.score_of(self.pruner))
            return self._running

    @property
    def nbytes(self) -> int:
        """Bytes of memory in addition to the dense model."""
        return self._running.nbytes if self._running else 0

    def release(self) -> None:
        """Free the memory of the model and its refined layers. The next access builds the model
        again from its formats."""
        self.cancel()
        with self.dense.lock:
            self._running, self._weights, self._refined = None, {}, set()

    def cancel(self) -> None:
        """Cancel work in progress at its next safe point."""
        self._changes += 1

    def safe_point(self) -> Callable[[], None]:
        """Create a function to call at safe points of work that starts now. It raises
        `CancelledError` after a newer change."""
        changes = self._changes

        def stop() -> None:
            if self._changes != changes:
                raise CancelledError

        return stop

    def apply(
        self, formats: Mapping[str, Format | str], pruner: str = "", quantizer: str = ""
    ) -> list[str]:
        """Change the formats of some layers, or the methods.

        Args:
            formats: full layer name -> new format.
            pruner: new pruner; empty for no change.
            quantizer: new quantizer; empty for no change.

        Returns:
            names of the layers that were made again.

        Raises:
            ConfigError: a layer, format or method does not exist, or they do not fit together; the
                state is unchanged.
        """
        pruner, quantizer = pruner or self.pruner, quantizer or self.quantizer
        requested = {name: self.dense.checked_format(name, fmt) for name, fmt in formats.items()}
        for method, registry in ((pruner, PRUNERS), (quantizer, QUANTIZERS)):
            if method not in registry:
                raise ConfigError(
                    f"The method {method[:40]!r} does not exist.",
                    f"The methods are {', '.join(registry)}.",
                    "Choose one of them.",
                    "method",
                )
        if pruner == "wanda":
            self.dense.require_text()
        self.cancel()
        with self.dense.lock:
            new_formats, score = {**self.formats, **requested}, self.dense.score_of(pruner)
            changed = {name for name, fmt in requested.items() if fmt != self.formats[name]}
            if pruner != self.pruner:
                same_score = score == self.dense.score_of(self.pruner)
                pruned = {name for name, fmt in self.formats.items() if fmt.pattern}
                changed |= pruned & self._refined if same_score else pruned
            if quantizer != self.quantizer:
                changed |= {name for name in self._refined if new_formats[name].width}
            ordered = [name for name in new_formats if name in changed]
            if self._running:
                changed_formats = {name: new_formats[name] for name in ordered}
                self._make_layers(self._running, changed_formats, score)
            self.formats, self.pruner, self.quantizer = new_formats, pruner, quantizer
            self._refined -= changed
            return ordered

    def _make_layers(
        self, running: RunningModel, formats: Mapping[str, Format], score: Score
    ) -> None:
        weights = {name: self.dense.make_layer(name, fmt, score) for name, fmt in formats.items()}
        running.write(weights)
        self._weights |= weights

    def refine(self) -> Iterator[Progress]:
        """Make all unrefined layers as in a run; the layers of each block are exchanged together.

        Raises:
            ConfigError: there is no calibration text, or the quantizer is available in runs only.
            CancelledError: a newer change cancelled the refinement; finished blocks stay refined.
        """
        running, stop = self.running, self.safe_point()
        formats = {
            name: fmt
            for name, fmt in self.formats.items()
            if fmt != DENSE and not self._is_final(name)
        }
        refinement = Refinement(
            self.dense, formats, self.pruner, self.quantizer, self.weight, lambda: stop()
        )
        passes = any(x.pattern for x in formats.values()) + any(x.width for x in formats.values())
        for done, (activity, weights) in enumerate(refinement.blocks(), 1):
            with self.dense.lock:
                stop()
                if weights:
                    self._weights |= weights
                    self._refined |= weights.keys()
                    running.write(weights)
                    self.cancel()  # measurements in progress describe the previous weights
                    stop = self.safe_point()
            yield done, passes * self.dense.blocks, activity

    def weight(self, name: str) -> Tensor:
        """Copy of the current weights [out, in] of a layer, float32."""
        with self.dense.lock:
            weight = self.stored_weight(name)
            W = weight.dense() if isinstance(weight, QuantizedWeight) else weight
            return W.to(torch.float32, copy=True)

    def stored_weight(self, name: str) -> LiveWeight:
        """Current weights of a layer, in the dtype of the model or as codes. Callers must not
        modify them."""
        with self.dense.lock:
            weight = self._weights.get(name) if self.running else None
            return self.dense.weight(name) if weight is None else weight

    def _is_final(self, name: str) -> bool:
        """Return True if a run would produce the current weights of a layer."""
        fmt = self.formats[name]
        pruning_final = fmt.pattern is None or self.pruner == INSTANT_METHODS["pruner"]
        rounding_final = fmt.width is None or self.quantizer == INSTANT_METHODS["quantizer"]
        return (
            name in self._refined
            or name in self.dense.outside
            or (pruning_final and rounding_final)
        )
