"""Calibration: second moments of the inputs of linear layers.

    H = X X^T / N        X [in, N]: one column for each of the N calibration tokens

is all that pruners, re-dense step, adjustment and GPTQ need of the calibration text, because the
mean squared change of a layer's output is a quadratic form in it:

    || (W - W_dense) X ||^2 / N  =  tr(D H D^T),   D = W - W_dense

Layers with the same input tensor (query, key and value; gate and up) share one H. Products and sums
are float32. Where the forward pass ran in bfloat16, its values are multiplied in bfloat16 units
(`gram`, or PyTorch's where it has them): nothing is rounded, and sums stay float32."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property, partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from backend.errors import ComputeError
from backend.linalg.gram import (
    add_gram,
    gram_dot,
    inverse_root,
    is_fast,
    largest_eigenvalue,
    packed,
)
from backend.models.block_forward import BlockStream, HiddenStates, run_block
from backend.models.blocks import LinearWeight
from backend.models.threads import place

PANEL = 256  # columns of H per product; the lower triangle is mirrored


class StatisticsLevel(IntEnum):
    """Which statistics of a layer's inputs to collect; each level includes the lower ones."""

    NOTHING = 0
    ENERGY = 1  # diag H, and the mean
    GRAM = 2  # H


_precision = Lock()
_nothing = partial(torch.empty, 0)


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of a layer's inputs. Missing ones are empty tensors.

    Quantities derived from H are cached, as layers that share an H use them again."""

    tokens: int = 0  # N
    energy: Tensor = field(default_factory=_nothing)  # mean square of each input, diag H, [in]
    gram: Tensor = field(default_factory=_nothing)  # H [in, in]
    dtype: torch.dtype = torch.float32  # of the inputs
    mean: Tensor = field(default_factory=_nothing)  # of each input, [in]
    _roots: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)
    _ordered_roots: dict[float, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def inverse_root(self, damping: float) -> Tensor:
        """U [in, in], upper triangular with U^T U = (H + damping mean(diag H) I)^-1. Raises
        NotPositiveDefiniteError: more damping would help."""
        if damping not in self._roots:
            self._roots[damping] = inverse_root(self.gram, damping)
        return self._roots[damping]

    def ordered_root(self, damping: float) -> tuple[Tensor, Tensor]:
        """The inputs by falling energy [in], and U [in, in] of H in that order. Raises
        NotPositiveDefiniteError: more damping would help."""
        if damping not in self._ordered_roots:
            order = self.energy.argsort(descending=True, stable=True)
            root = inverse_root(self.gram[order][:, order], damping)
            self._ordered_roots[damping] = order, root
        return self._ordered_roots[damping]

    @cached_property
    def largest_eigenvalue(self) -> float:
        """lambda_max(H) by the Lanczos iteration, plus 5 %."""
        return largest_eigenvalue(self.gram)

    @cached_property
    def rounded_gram(self) -> Tensor:
        """H, in bfloat16 where the inputs were, for products that need no more precision."""
        return self.gram.bfloat16() if self.dtype == torch.bfloat16 else self.gram

    @cached_property
    def packed_gram(self) -> Tensor | None:
        """`rounded_gram` as C++ multiplies it (`gram.packed`); None where PyTorch has to."""
        return packed(self.rounded_gram) if is_fast(self.rounded_gram) else None


def output_energy(D: Tensor, inputs: InputStatistics) -> float:
    """tr(D H D^T): mean over tokens of the squared norm of D x. D [out, in], float32, for the
    product rounded to the precision of the inputs: bfloat16 moves the sum by some 0.0001 of it."""
    rounded = D.bfloat16() if inputs.dtype == torch.bfloat16 else D
    if is_fast(rounded):
        return gram_dot(inputs.gram.contiguous(), rounded)
    H = inputs.rounded_gram
    return torch.linalg.vecdot((rounded @ H).to(D.dtype), D).sum().item()


@dataclass(frozen=True)
class DenseReference:
    """The dense layer on given inputs: the reference for the error of changed weights."""

    dense: Tensor
    inputs: InputStatistics

    @cached_property
    def energy(self) -> float:
        """tr(W_dense H W_dense^T)."""
        return output_energy(self.dense, self.inputs)

    def relative_error(self, W: Tensor) -> float:
        """tr(D H D^T) / tr(W_dense H W_dense^T); 0 when the layer's outputs are all zero."""
        error = output_energy(W - self.dense, self.inputs)
        return error / self.energy if self.energy > 0 else 0.0


class _Sums:
    """Running sums over the batches of one input tensor."""

    def __init__(self, level: StatisticsLevel) -> None:
        self.level, self.tokens, self.dtype = level, 0, torch.float32
        self.total, self.sum = torch.empty(0), torch.empty(0)

    def add(self, x: Tensor) -> None:
        """Add one batch [..., in]."""
        rows = x.detach().reshape(-1, x.shape[-1])
        X = rows.float()
        self.tokens, self.dtype = self.tokens + len(X), x.dtype
        self.sum = X.sum(0) + (self.sum if len(self.sum) else 0)
        if self.level != StatisticsLevel.GRAM:
            self.total = X.square().sum(0) + (self.total if len(self.total) else 0)
            return
        if not len(self.total):
            self.total = X.new_zeros(X.shape[1], X.shape[1])
        if is_fast(rows):
            add_gram(self.total, rows)
            return
        # the fastest product that is exact for such values: a setting of the whole process
        with _precision:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("medium" if x.dtype == torch.bfloat16 else "highest")
            try:
                for a in range(0, len(self.total), PANEL):  # on and above the diagonal
                    self.total[a : a + PANEL, a:].addmm_(X[:, a : a + PANEL].T, X[:, a:])
            finally:
                torch.set_float32_matmul_precision(before)

    def merge(self, other: "_Sums") -> None:
        """Add the sums of other batches."""
        self.tokens += other.tokens
        self.sum, self.total = self.sum.add_(other.sum), self.total.add_(other.total)

    def finish(self) -> InputStatistics:
        mean = self.sum / self.tokens
        if self.level == StatisticsLevel.ENERGY:
            energy = self.total / self.tokens
            return InputStatistics(self.tokens, energy, dtype=self.dtype, mean=mean)
        upper = self.total / self.tokens
        gram = upper.triu_() + upper.triu(1).T
        return InputStatistics(self.tokens, gram.diagonal(), gram, self.dtype, mean)


class InputCollector:
    """Collect the second moments of the inputs of some linears during forward passes. Batches may
    be run side by side: those of each `place` are summed by themselves, in their order.

    Args:
        linears: name -> linear.
        level: statistics to collect.
    """

    def __init__(self, linears: Mapping[str, LinearWeight], level: StatisticsLevel) -> None:
        self._linears = linears
        self._new_sums = partial(_Sums, level)
        self._sums: dict[str, dict[int, _Sums]] = {name: {} for name in linears}
        self._leaders: dict[str, str] = {}
        # leaders and their inputs in the current batch of each place
        self._batch = defaultdict[int, dict[str, Tensor]](dict)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "InputCollector":
        for name, linear in self._linears.items():
            hook = partial(self._add, name)
            self._handles.append(linear.layer.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._batch.clear()

    def _add(self, name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0]
        batch = self._batch[place()]
        if name in batch:  # second call: a new batch has begun
            batch.clear()
        leader = next((one for one, tensor in batch.items() if tensor is x), name)
        self._leaders[name] = leader
        if leader == name:
            batch[name] = x
            self._sums[name].setdefault(place(), self._new_sums()).add(x)

    def finish(self) -> dict[str, InputStatistics]:
        """Name -> statistics; layers with the same input tensor share one object.

        An expert that no token was sent to gets those of independent inputs of equal size, H = I,
        and 0 tokens. Raises ComputeError: the inputs of a layer are not finite."""
        finished = {name: _merged(sums).finish() for name, sums in self._sums.items() if sums}
        for name, inputs in finished.items():
            if not inputs.energy.isfinite().all():
                raise ComputeError(
                    f"The inputs of {self._linears[name].name} are not finite.",
                    "An activation overflowed in the calibration pass.",
                    "Choose float32 as the forward precision, or other calibration text.",
                    field="precision",
                )
        for name, linear in self._linears.items():
            if name not in self._leaders:
                gram = torch.eye(linear.columns, device=linear.layer.get_parameter("weight").device)
                mean = torch.zeros_like(gram[0])
                finished[name] = InputStatistics(0, gram.diagonal(), gram, mean=mean)
        return {name: finished[self._leaders.get(name, name)] for name in self._linears}


def _merged(sums: Mapping[int, _Sums]) -> _Sums:
    """The sums of all places."""
    first, *others = (sums[number] for number in sorted(sums))
    for other in others:
        first.merge(other)
    return first


def collect_inputs(
    model: PreTrainedModel,
    stream: BlockStream,
    block: int,
    hidden: HiddenStates,
    linears: Mapping[str, LinearWeight],
    level: StatisticsLevel,
    safe_point: Callable[[], None],
    whole: bool = True,
) -> tuple[dict[str, InputStatistics], HiddenStates]:
    """Run `block` on `hidden` (`run_block`); input statistics of some of its linears by module, and
    its outputs. `whole`: whether it is run to its end; if not, the pass ends at the last of the
    linears, and there are no outputs."""
    until = [] if whole else [linear.layer for linear in linears.values()]
    with InputCollector(linears, level) as collector:
        outputs = run_block(model, stream, block, hidden, safe_point, until)
        return collector.finish(), outputs
