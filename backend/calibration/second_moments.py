"""Second moments of the inputs of linear layers on calibration text.

    H = X X^T / N        X [in, N]: one column for each of the N calibration tokens

Pruners, the re-dense step, weight adjustment and GPTQ need nothing else of the calibration text,
because the mean squared change of a layer's output is a quadratic form in H:

    || (W - W_dense) X ||^2 / N  =  tr(D H D^T),   D = W - W_dense

Layers with the same input tensor (query, key and value; gate and up) share one H. Products and sums
are float32. If the forward pass ran in bfloat16, bfloat16 instructions multiply its values
(`backend.linalg.gram`, or PyTorch on other devices): products are exact, and sums stay float32."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from backend.errors import ComputeError
from backend.linalg.gram import (
    add_gram,
    add_gram_in_pytorch,
    inverse_root,
    is_fast,
    is_supported,
    largest_eigenvalue,
    packed,
)
from backend.models.block_forward import BlockStream, HiddenStates, run_block
from backend.models.blocks import LinearWeight
from backend.models.threads import part_index


class StatisticsLevel(IntEnum):
    """Level of detail of input statistics; each level includes the lower levels."""

    NOTHING = 0
    ENERGY = 1  # diag H, and the mean
    GRAM = 2  # H


_empty = partial(torch.empty, 0)


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of a layer's inputs. Statistics that were not collected are empty tensors.

    Quantities derived from H are cached, because layers that share an H use them again.

    Attributes:
        tokens: number of tokens, N.
        energy: mean square of each input, diag H, [in].
        gram: H [in, in].
        dtype: dtype of the inputs.
        mean: mean of each input, [in].
    """

    tokens: int = 0
    energy: Tensor = field(default_factory=_empty)
    gram: Tensor = field(default_factory=_empty)
    dtype: torch.dtype = torch.float32
    mean: Tensor = field(default_factory=_empty)
    _roots: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)
    _ordered_roots: dict[float, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def inverse_root(self, damping: float) -> Tensor:
        """U [in, in], upper triangular with U^T U = (H + damping mean(diag H) I)^-1.

        Raises:
            NotPositiveDefiniteError: more damping would help.
        """
        if damping not in self._roots:
            self._roots[damping] = inverse_root(self.gram, damping)
        return self._roots[damping]

    def ordered_root(self, damping: float) -> tuple[Tensor, Tensor]:
        """Order of the inputs by falling energy [in], and U [in, in] of H in that order.

        Raises:
            NotPositiveDefiniteError: more damping would help.
        """
        if damping not in self._ordered_roots:
            order = self.energy.argsort(descending=True, stable=True)
            root = inverse_root(self.gram[order][:, order], damping)
            self._ordered_roots[damping] = order, root
        return self._ordered_roots[damping]

    @cached_property
    def largest_eigenvalue(self) -> float:
        """Upper estimate of lambda_max(H): 5 % above the result of a Lanczos iteration."""
        return largest_eigenvalue(self.gram)

    @cached_property
    def rounded_gram(self) -> Tensor:
        """H in bfloat16 if the inputs were bfloat16, for products that need no more precision."""
        return self.gram.bfloat16() if self.dtype == torch.bfloat16 else self.gram

    @cached_property
    def packed_gram(self) -> Tensor | None:
        """`rounded_gram` in the layout of the C++ kernels (`gram.packed`); None if they do not run
        here."""
        return packed(self.rounded_gram) if is_supported(self.rounded_gram) else None


def output_energy(D: Tensor, inputs: InputStatistics) -> float:
    """Mean over tokens of the squared norm of D x, tr(D H D^T).

    For the product, D is rounded to the precision of the inputs; bfloat16 changes the sum by about
    0.01 %.

    Args:
        D: difference of weights [out, in], float32.
        inputs: statistics with H.
    """
    rounded = D.bfloat16() if inputs.dtype == torch.bfloat16 else D
    H = inputs.rounded_gram
    return torch.linalg.vecdot((rounded @ H).to(D.dtype), D).sum().item()


@dataclass(frozen=True)
class DenseReference:
    """Dense layer and its inputs, the reference for the error of changed weights."""

    dense: Tensor
    inputs: InputStatistics

    @cached_property
    def energy(self) -> float:
        """Energy of the dense outputs, tr(W_dense H W_dense^T)."""
        return output_energy(self.dense, self.inputs)

    def relative_error(self, W: Tensor) -> float:
        """Relative output error of W, tr(D H D^T) / tr(W_dense H W_dense^T).

        It is 0 if the outputs of the dense layer are all zero."""
        error = output_energy(W - self.dense, self.inputs)
        return error / self.energy if self.energy > 0 else 0.0


class _Sums:
    """Running sums over the batches of one input tensor."""

    def __init__(self, level: StatisticsLevel) -> None:
        self.level, self.tokens, self.dtype = level, 0, torch.float32
        # Sums of x, and of its squares (level ENERGY) or products x x^T (level GRAM).
        self.sum, self.moments = torch.empty(0), torch.empty(0)

    def add(self, x: Tensor) -> None:
        """Add one batch [..., in]."""
        rows = x.detach().reshape(-1, x.shape[-1])
        X = rows.float()
        self.tokens, self.dtype = self.tokens + len(X), x.dtype
        self.sum = X.sum(0) + (self.sum if len(self.sum) else 0)
        if self.level != StatisticsLevel.GRAM:
            self.moments = X.square().sum(0) + (self.moments if len(self.moments) else 0)
            return
        if not len(self.moments):
            self.moments = X.new_zeros(X.shape[1], X.shape[1])
        if is_fast(rows):
            add_gram(self.moments, rows)
        else:
            add_gram_in_pytorch(self.moments, X, x.dtype)

    def merge(self, other: "_Sums") -> None:
        """Add the sums of other batches."""
        self.tokens += other.tokens
        self.sum, self.moments = self.sum.add_(other.sum), self.moments.add_(other.moments)

    def finish(self) -> InputStatistics:
        """Return the statistics. The sums are overwritten, because those of a block are large."""
        mean = self.sum / self.tokens
        gram = self.moments.div_(self.tokens)
        if self.level == StatisticsLevel.ENERGY:
            return InputStatistics(self.tokens, gram, dtype=self.dtype, mean=mean)
        gram.triu_().add_(gram.triu(1).T)
        return InputStatistics(self.tokens, gram.diagonal(), gram, self.dtype, mean)


class InputCollector:
    """Collector of input statistics of some linears during forward passes.

    Batches may run in parallel. Each `place` (see `backend.models.threads`) sums its batches in
    order, so that results are deterministic.

    Args:
        linears: name -> linear.
        level: statistics to collect.
    """

    def __init__(self, linears: Mapping[str, LinearWeight], level: StatisticsLevel) -> None:
        self._linears = linears
        self._new_sums = partial(_Sums, level)
        self._sums: dict[str, dict[int, _Sums]] = {name: {} for name in linears}
        self._leaders: dict[str, str] = {}  # linear -> the first linear with the same inputs
        # place -> leader -> its inputs in the current batch
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
        batch = self._batch[part_index()]
        if name in batch:  # the second call of a linear belongs to a new batch
            batch.clear()
        leader = next((linear for linear, tensor in batch.items() if tensor is x), name)
        self._leaders[name] = leader
        if leader == name:
            batch[name] = x
            self._sums[name].setdefault(part_index(), self._new_sums()).add(x)

    def finish(self) -> dict[str, InputStatistics]:
        """Compute name -> statistics. Layers with the same input tensor share one object.

        An expert that received no token gets the statistics of independent inputs of equal size,
        H = I, and 0 tokens.

        Raises:
            ComputeError: the inputs of a layer are not finite.
        """
        statistics = {name: _merged(sums).finish() for name, sums in self._sums.items() if sums}
        for name, inputs in statistics.items():
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
                statistics[name] = InputStatistics(0, gram.diagonal(), gram, mean=mean)
        return {name: statistics[self._leaders.get(name, name)] for name in self._linears}


def _merged(sums_by_place: Mapping[int, _Sums]) -> _Sums:
    """Merge the sums of all places, in the order of the places."""
    total, *remaining = (sums_by_place[number] for number in sorted(sums_by_place))
    for sums in remaining:
        total.merge(sums)
    return total


def collect_inputs(
    model: PreTrainedModel,
    stream: BlockStream,
    block: int,
    hidden: HiddenStates,
    linears: Mapping[str, LinearWeight],
    level: StatisticsLevel,
    safe_point: Callable[[], None],
    outputs: bool = True,
) -> tuple[dict[str, InputStatistics], HiddenStates]:
    """Run `block` on `hidden` and collect input statistics of some of its linears.

    Args:
        model: model of the block.
        stream: arguments of the forward passes.
        block: index of the block.
        hidden: inputs of the block.
        linears: module name -> linear.
        level: statistics to collect.
        safe_point: called between batches; may raise to stop.
        outputs: compute the block's outputs; otherwise the pass ends at the last linear.

    Returns:
        module name -> statistics, and the block's outputs.
    """
    until = [] if outputs else [linear.layer for linear in linears.values()]
    with InputCollector(linears, level) as collector:
        block_outputs = run_block(model, stream, block, hidden, safe_point, until)
        return collector.finish(), block_outputs
