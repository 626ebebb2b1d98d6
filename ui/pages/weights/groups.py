"""Binary data on the group magnitudes of one tensor that was trained on a quantization grid.

    codes       [steps, 2^bits]        share of the weights at each point of the grid
    sorted      [steps, QUANTILES]     change of all magnitudes of the tensor, %, ascending
    cells       [steps, rows, columns] change of the magnitudes, %, rows sorted by their last change
    bell        [bins, 2]              dense weights in steps of the grid, and their density
    dense, quantized  [groups, size]   weights of the worst groups, worst first
    grids       [groups, 2^bits]       ascending grid points of those groups

A magnitude m is a factor of a group's scale; its change is 100 (m - 1) %, the only unit here."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from backend.quantization import GRID_NAMES
from backend.statistics.tensors import INPUT_ENERGY
from backend.store import frames, queries, tensors
from ui.format import of_unit, share
from ui.runs.results import DENSE
from ui.runs.weights import MAGNITUDE, RunWeights, runs_with_groups
from ui.widgets.explorer import cached_by
from ui.widgets.packed import PackedArrays

MAX_CELLS = 128  # rows and columns of the map
QUANTILES = 201
LISTED = 8  # worst groups
NONE_RECORDED = "This run trains no group magnitudes. DL-QAT runs record them."
NOT_HERE = "No group magnitudes are recorded for this tensor."


@dataclass(frozen=True)
class TensorGroups:
    """Recorded group profiles of one tensor at one stage, by name and step."""

    weights: RunWeights
    tensor: str
    stage: str
    profiles: Mapping[str, Mapping[int, np.ndarray]]

    @classmethod
    def read(cls, weights: RunWeights, tensor: str, stage: str) -> "TensorGroups":
        """The groups at a stage, or at the last stage that has groups."""
        found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
        for profile in tensors.profiles(weights.job.id, tensor):
            by_name = found.setdefault(profile.stage, {})
            by_name.setdefault(profile.name, {})[profile.step] = profile.values
        having = [s for s in weights.stages if MAGNITUDE in found.get(s, {})]
        chosen = stage if stage in having else (having or [stage])[-1]
        return cls(weights, tensor, chosen, found.get(chosen, {}))

    def last(self, name: str) -> np.ndarray:
        """The last recorded values of a profile; empty without any."""
        steps = self.profiles.get(name, {})
        return steps[max(steps)] if steps else np.zeros((0, 0), "<f4")

    @cached_property
    def changes(self) -> dict[int, np.ndarray]:
        """Change of each magnitude in percent, [rows, groups], by step."""
        recorded = self.profiles.get(MAGNITUDE, {})
        return {step: 100 * (values.astype(float) - 1) for step, values in recorded.items()}

    def codes(self, step: int) -> np.ndarray:
        """Share of the weights at each grid point, at the recorded step nearest to `step`."""
        recorded = self.profiles.get("codes", {})
        if not recorded:
            return np.zeros(0)
        counts = recorded[min(recorded, key=lambda at: abs(at - step))].astype(float)
        shares: np.ndarray = counts / (counts.sum() or 1.0)
        return shares

    @property
    def title(self) -> str:
        """Sentence on the spread of the magnitude changes of this tensor."""
        last = self.changes[max(self.changes)]
        low, high = np.nanpercentile(last, [1, 99])
        most = max(abs(low), abs(high))
        verb = "hardly move" if most < 5 else "move"
        return f"Group magnitudes {verb}: 98 % stay within ±{share(most / 100)}"

    @property
    def grid_title(self) -> str:
        """Sentence on the number of bits that the codes carry, from their entropy."""
        shares = self.codes(10**9)
        used = shares[shares > 0]
        if not len(used):
            return "No codes recorded"
        bits, carried = np.log2(len(shares)), float(-(used * np.log2(used)).sum())
        return f"The bell snaps to {len(shares)} points, which carry {carried:.2f} of {bits:g} bits"

    @property
    def harm(self) -> str:
        """The input group with the largest share of the expected output error."""
        _, module = self.weights.places[self.tensor]
        block = self.weights.places[self.tensor][0]
        energies = tensors.module_profiles(self.weights.job.id, module, INPUT_ENERGY)
        energy = next((p.values for p in energies if p.block == block), None)
        error = self.last("error")
        if energy is None or not error.size or len(energy) % error.shape[1]:
            return "Worst groups: where weights lie beyond the grid"
        inputs = energy.astype(float).reshape(error.shape[1], -1).mean(1)
        product = inputs * (error.astype(float) ** 2).mean(0)
        k = int(product.argmax())
        times = np.sqrt(inputs[k] / (np.median(inputs) or 1.0))
        part = share(float(product[k] / (product.sum() or 1.0)), 0)
        return (
            f"{part} of the output error comes from input group {k}: "
            f"its inputs are {of_unit(float(times), '×', 2)} the median"
        )

    def packed(self) -> PackedArrays:
        """All arrays of the view."""
        steps = sorted(self.changes)
        order = np.argsort(self.changes[steps[-1]].mean(1), kind="stable")
        cells = np.stack([merged(self.changes[step][order]) for step in steps])
        positions = np.linspace(0, 100, QUANTILES)
        quantiles = np.stack([np.nanpercentile(self.changes[s], positions) for s in steps])
        arrays = {
            "codes": np.stack([self.codes(step) for step in steps]),
            "sorted": quantiles,
            "cells": cells,
            "bell": self._bell(),
            **self._worst(),
        }
        config = self.weights.job.config
        size = config.get("group_size")
        form = [f"{config.get('bits', '–')} bits", f"groups of {size}" if size else "a group a row"]
        form += [GRID_NAMES[grid] for grid in [config.get("grid")] if grid in GRID_NAMES]
        rows, groups = self.changes[steps[-1]].shape
        head = {
            "title": self.title,
            "gridTitle": self.grid_title,
            "harm": self.harm,
            "format": ", ".join(form),
            "stage": self.stage,
            "steps": steps,
            "rows": rows,
            "groups": groups,
            "listed": self._listed(),
        }
        return PackedArrays.of(head, {name: a.astype("<f4") for name, a in arrays.items()})

    def _bell(self) -> np.ndarray:
        """Density of the dense weights over the grid, in units of the mean scale."""
        snapshots = tensors.tensor_snapshots(self.weights.job.id, self.tensor)
        dense = next((s for s in snapshots if s.stage == DENSE), None)
        scale = self.last("scale")
        if dense is None or not scale.size:
            return np.zeros((0, 2))
        step = float(np.abs(scale).mean()) or 1.0
        edges = np.linspace(dense.lo, dense.hi, len(dense.counts) + 1) / step
        density = dense.counts / (dense.n * (edges[1] - edges[0]))
        return np.stack([(edges[:-1] + edges[1:]) / 2, density], axis=1)

    def _worst(self) -> dict[str, np.ndarray]:
        """Weights of the worst groups, dense and quantized."""
        recorded, scale = self.last("worst")[:LISTED], self.last("scale")
        points = np.arange(len(self.codes(0)))
        size = max(0, (recorded.shape[1] - 3) // 2) if len(recorded) else 0
        grids = [
            np.sort(float(scale[int(row[0]), int(row[1])]) * (points - row[2])) for row in recorded
        ]
        return {
            "dense": recorded[:, 3 : 3 + size],
            "quantized": recorded[:, 3 + size : 3 + 2 * size],
            "grids": np.stack(grids) if grids else np.zeros((0, 0)),
        }

    def _listed(self) -> list[dict[str, Any]]:
        """Position, error, share of clipped weights and change of the worst groups."""
        error, clipped = self.last("error"), self.last("clipped")
        change = self.changes[max(self.changes)]
        places = [(int(row[0]), int(row[1])) for row in self.last("worst")[:LISTED]]
        return [
            {
                "row": row,
                "group": group,
                "error": float(error[row, group]),
                "clipped": float(clipped[row, group]) if clipped.size else None,
                "change": float(change[row, group]),
            }
            for row, group in places
        ]


def merged(values: np.ndarray) -> np.ndarray:
    """Means of neighboring values, at most `MAX_CELLS` rows and columns."""
    rows, columns = ((np.arange(n) * min(n, MAX_CELLS) // n) for n in values.shape)
    sums = np.zeros((rows[-1] + 1, columns[-1] + 1))
    counts = np.zeros_like(sums)
    np.add.at(sums, (rows[:, None], columns), values)
    np.add.at(counts, (rows[:, None], columns), 1)
    means: np.ndarray = sums / counts
    return means


@cached_by(queries.profiles_mark)
def tensors_with_groups(run: str) -> list[str]:
    """Names of a run's tensors with recorded group magnitudes."""
    names = frames.profile_names(run)
    return [*names[names["name"] == MAGNITUDE]["tensor"].unique()]


def packed_groups(weights: RunWeights, tensor: str, stage: str) -> PackedArrays:
    """The groups of a tensor; if there are none, the reason, and the name of a tensor that has
    groups."""
    having = tensors_with_groups(weights.job.run) or []
    if tensor in having:
        return TensorGroups.read(weights, tensor, stage).packed()
    other = next((name for name in having if name in weights.tensors), "")
    runs = [] if other else runs_with_groups()
    head = {
        "missing": NOT_HERE if other else NONE_RECORDED,
        "other": other,
        "label": weights.tensors.get(other, ""),
        "run": runs[0] if runs else "",
    }
    return PackedArrays.of(head, {})
