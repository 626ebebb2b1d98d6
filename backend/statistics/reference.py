"""Statistics of the stages of one tensor relative to the dense tensor.

    cosine    = <W, W_dense> / (|W| |W_dense|)
    moved     = |W - W_dense| / |W_dense|                      Frobenius norms
    distance  = mean_i |w_(i) - d_(i)| / std(W_dense)          both sorted: the Wasserstein-1
                                                               distance of the two distributions
    cutoff    = the magnitude cut-off of W_dense at the sparsity of W
    by_size   = the fraction of W's zeros whose W_dense is below the cut-off: 1 for magnitude
                pruning of the whole tensor, less if inputs, rows or groups are considered

The dense tensor and each stage are sorted once (`ordered_values`); all statistics of their
distributions are computed from the sorted copies."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.statistics.distribution import (
    comparable,
    cutoff,
    histogram,
    magnitude_counts,
    ordered_values,
    quantiles,
    scale_of,
    tensor_statistics,
)
from backend.statistics.profiles import (
    channel_figures,
    joint_histogram,
    matrix_maps,
    round_mantissa,
    spectrum,
)
from backend.statistics.tensors import (
    INPUT_ENERGY,
    JOINT,
    MAGNITUDES,
    TensorProfile,
    TensorRecorder,
    TensorSnapshot,
)


@dataclass(frozen=True)
class TensorMeasurement:
    """Statistics of one tensor at one stage, ready to record."""

    snapshot: TensorSnapshot
    profiles: list[TensorProfile]

    def report(self, recorder: TensorRecorder) -> None:
        """Send the snapshot and all profiles to `recorder`."""
        recorder.snapshot(self.snapshot)
        for profile in self.profiles:
            recorder.profile(profile)


class ReferenceTensor:
    """Dense weight tensor [out, in] with a sorted copy, the reference for its stages.

    Attributes:
        dense: dense weights.
        ordered: sorted dense weights [n].
        edge: upper end of the histogram of every stage.
        std: standard deviation of the dense weights.
    """

    def __init__(self, dense: Tensor) -> None:
        self.dense = dense
        self.ordered = ordered_values(dense)
        self.edge, self.std = scale_of(self.ordered)

    def measure(
        self,
        weight: Tensor,
        *,
        tensor: str,
        block: int,
        module: str,
        stage: str,
        more: Mapping[str, float] | None = None,
        energy: Tensor | None = None,
        spectral: bool = True,
    ) -> TensorMeasurement:
        """Compute statistics and profiles of `weight` [out, in] at `stage`.

        Args:
            weight: weights at that stage.
            tensor: full parameter name.
            block: index of its decoder block.
            module: module name inside the block.
            stage: name of the stage.
            more: further statistics, such as the relative output error.
            energy: mean square [in] of the layer's inputs, if it is known.
            spectral: compute singular values, which takes most of the time.
        """
        is_dense = weight is self.dense
        ordered = self.ordered if is_dense else ordered_values(weight)
        edge, (counts, zeros, below, above) = self.edge, histogram(ordered, self.edge)
        stats = tensor_statistics(ordered, self.std)
        stats |= {} if is_dense else self._changes(weight, ordered, zeros)
        spectral_stats, values = spectrum(weight) if spectral else ({}, {})
        snapshot = TensorSnapshot(
            tensor,
            block,
            module,
            stage,
            len(ordered),
            zeros,
            below,
            above,
            -edge,
            edge,
            counts.numpy(),
            stats | spectral_stats | dict(more or {}),
            quantiles(ordered),
        )
        values |= channel_figures(weight) | matrix_maps(weight, None if is_dense else self.dense)
        if not is_dense:
            values[JOINT] = joint_histogram(weight, self.dense, edge)
        if energy is not None and len(energy):
            values[INPUT_ENERGY] = round_mantissa(energy.float().cpu().numpy())
        values[MAGNITUDES] = magnitude_counts(ordered, self.std).numpy().astype(np.float32)
        profiles = [
            TensorProfile(tensor, block, module, stage, name, array)
            for name, array in values.items()
        ]
        return TensorMeasurement(snapshot, profiles)

    def _changes(self, weight: Tensor, ordered: Tensor, zeros: int) -> dict[str, float]:
        """Statistics of `weight`, which has `zeros` exact zeros, relative to the dense tensor."""
        W, D = weight.detach().float().flatten(), self.dense.float().flatten()
        norms = W.norm() * D.norm()
        stats = {
            "cosine": (W @ D / norms if norms > 0 else W.new_zeros(())).item(),
            "moved": ((W - D).norm() / D.norm().clamp_min(torch.finfo(D.dtype).tiny)).item(),
            "distance": (ordered - self.ordered).abs_().mean().item() / (self.std or 1.0),
        }
        if zeros:
            cut = cutoff(self.ordered, zeros / len(W))
            # NumPy takes a tenth of the time of PyTorch.
            dense_sizes, values = (x.cpu().numpy() for x in (comparable(D).abs(), W))
            below = np.count_nonzero((dense_sizes <= cut) & (values == 0))
            stats |= {"cutoff": cut, "by_size": int(below) / zeros}
        return stats
