"""The architecture as a tree: model, blocks, attention and MLP, matrices. Areas are numbers of
weights, colours a statistic."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ui.charts.heatmap import DIVERGING, colour_bar, colour_limits, even_ticks
from ui.charts.statistics import Statistic
from ui.charts.template import layout
from ui.format import count

ROOT = "Model"
PARTS = {"self_attn": "Attention", "attention": "Attention", "mlp": "MLP"}


def architecture_tree(
    rows: pd.DataFrame, statistic: Statistic, title: str, even: bool
) -> go.Figure:
    """An icicle plot; a click on a part shows it alone.

    Args:
        rows: one a matrix, with block, module, tensor, n, and `value` as it is shown.
        title: of the colours.
        even: colours diverge from 0.
    """
    nodes = tree_nodes(rows)
    low, high = colour_limits(rows["value"].to_numpy(float), even=even)
    bar = colour_bar(title) | (even_ticks(high) if even else {})
    figure = go.Icicle(
        ids=nodes["id"], labels=nodes["label"], parents=nodes["parent"], values=nodes["n"],
        branchvalues="total", sort=False, customdata=nodes["tensor"],
        text=[_said(v, n, statistic) for v, n in zip(nodes["value"], nodes["n"], strict=True)],
        hovertemplate="<b>%{id}</b><br>%{text}<extra></extra>", textinfo="label",
        marker={
            "colors": nodes["value"], "cmin": low, "cmax": high, "colorbar": bar,
            "colorscale": DIVERGING if even else "cividis", "line": {"width": 0.5},
        },
        tiling={"orientation": "h"}, root={"color": "rgba(128,128,128,0.15)"},
        pathbar={"visible": True, "thickness": 22},
    )  # fmt: skip
    return go.Figure(figure, layout(view=f"tree/{title}") | {"margin": {"t": 64, "l": 8, "r": 8}})


def tree_nodes(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each node: id, label, parent, n, value (of an inner node the mean, weighted by
    weights), tensor (of a leaf)."""
    leaves = [
        (f"Block {row.block}", _part(row.module), row.module.rsplit(".", 1)[-1], row)
        for row in rows.sort_values("block", kind="stable").itertuples()
    ]
    nodes: dict[str, dict[str, object]] = {}
    members: dict[str, list[tuple[float, int]]] = {}
    for block, part, name, row in leaves:
        path = [ROOT, block, *([part] if part else []), name]
        for depth, label in enumerate(path):
            id = "/".join(path[1 : depth + 1]) or ROOT
            parent = "" if not depth else "/".join(path[1:depth]) or ROOT
            nodes.setdefault(id, {"id": id, "label": label, "parent": parent, "tensor": None})
            members.setdefault(id, []).append((float(row.value), int(row.n)))
        nodes[id]["tensor"] = row.tensor
    for id, node in nodes.items():
        values, sizes = np.array(members[id]).T
        known = np.isfinite(values)
        node["n"] = int(sizes.sum())
        node["value"] = (
            float(np.average(values[known], weights=sizes[known])) if known.any() else float("nan")
        )
    return pd.DataFrame([*nodes.values()])


def _part(module: str) -> str:
    """Attention, MLP, or the name of what the matrix is part of; empty where it is part of none."""
    above = module.rpartition(".")[0]
    return PARTS.get(above, above)


def _said(value: float, n: int, statistic: Statistic) -> str:
    return f"{statistic.label} {statistic.say(value / statistic.scale)}<br>{count(n)} weights"
