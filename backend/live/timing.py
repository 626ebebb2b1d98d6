"""Measures the times of `backend.sensitivity.profile` in the native decoder. How long a product
takes does not depend on the weights: codes and masks are drawn. Time is the processor's that the
calling thread has, which computes its share of each product: what other processes take does not
count, but for what they leave in the caches."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from backend.errors import ModelError
from backend.live.running import LiveWeight, RunningModel
from backend.models.blocks import LinearWeight
from backend.pruning.masks import keep_mask
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.sensitivity.profile import DecodingTimes, Format

CONTEXT, PASSES = 192, 12  # tokens before the one that is timed; passes, the fastest counts


class DecodingClock:
    """Times a model whose layers change their formats. `stop`: called between formats; may raise.
    Raises ModelError: the native decoder does not run it; nothing else is timed."""

    def __init__(self, dense: PreTrainedModel, stop: Callable[[], None]) -> None:
        self.running, self._stop = RunningModel(dense, torch.bfloat16), stop
        self.formats = dict.fromkeys(self.running.layers, Format())
        target = self.running.target
        if target is None or target.native is None:
            raise ModelError("The native decoder does not run this model.", self.running.decoder)
        self._ids = [n % target.vocabulary for n in range(min(CONTEXT, target.context - 1))]
        self._target, self._cache = target, target.new_cache(len(self._ids) + 1)
        target.read(self._ids, self._cache)

    def milliseconds(self, formats: Mapping[str, Format]) -> float:
        """Of a token with these layers in these formats, and all others as they were."""
        self._stop()
        layers = self.running.layers
        changed = {name: form for name, form in formats.items() if form != self.formats[name]}
        self.running.write({name: drawn(layers[name], form) for name, form in changed.items()})
        self.formats |= changed
        return 1e3 * min(self._pass() for _ in range(PASSES))

    def _pass(self) -> float:
        """Seconds of a token."""
        start = time.thread_time()
        self._target.read(self._ids[:1], self._cache)
        taken = time.thread_time() - start
        self._cache.rewind(len(self._ids))
        return taken

    def times(self, inside: Sequence[Format], outside: Sequence[Format]) -> DecodingTimes:
        """With the layers of the blocks in each of `inside`, and the head in each of `outside`."""
        narrowest_last = sorted(inside, key=lambda form: -form.bits_per_weight(CONTEXT))
        layers = self.running.layers.items()
        blocks, rest = ([k for k, x in layers if (x.block < 0) == out] for out in (False, True))
        taken = {
            str(form): self.milliseconds(
                {name: form for name in blocks if form.fits(dict(layers)[name].columns)}
            )
            for form in (Format(), *narrowest_last)  # beside which a head weighs most
        }
        head = {
            str(form): self.milliseconds(dict.fromkeys(rest, form)) for form in (Format(), *outside)
        }
        most = head[str(Format())]
        return DecodingTimes(
            layers=taken,
            head={form: own - most for form, own in head.items()},
            threads=torch.get_num_threads(),
        )


def drawn(layer: LinearWeight, form: Format) -> LiveWeight:
    """Weights of the shape of a layer as they are stored in a format."""
    scores = torch.rand(layer.read().shape)
    rows, columns = scores.shape
    keep = scores >= form.sparsity
    if form.pattern and form.pattern.structured:
        keep = keep_mask(scores, form.pattern).bool()
    if form.width is None:
        return (scores - 0.5) * keep / columns
    bits, middle = form.width.bits, 2 ** (form.width.bits - 1)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    scale = torch.full((rows, columns // (form.width.group or columns)), 1 / (columns * middle))
    grid = QuantGrid(bits, scale, torch.full_like(scale, middle))
    return QuantizedWeight(grid, torch.where(keep, codes, middle).byte())
