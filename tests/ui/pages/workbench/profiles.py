"""A sensitivity profile of the toy model, as its run stores it, for the tests of its pages."""

import numpy as np

from backend.sensitivity.profile import FIGURES
from backend.statistics.tensors import SENSITIVITY, TensorProfile
from backend.store.tables import Job, Table
from jobs.fields.models import resolve_model
from jobs.profile.kind import DENSE, EMBEDDING_FORMATS
from jobs.runtime.row_buffer import profile_row
from tests.ui.lab import job

FORMATS = ("int2-g64", "int3-g64", "int4-g64", "50%", "70%", "2:4")
FISHER = np.array([0.2, 0.05, 0.01, 0.03, 0.2, 0.05])
MEASURED = ("int3-g64", "50%")
WORST = "model.layers.0.mlp.down_proj"
TIMES = {
    "layers": {
        "dense": 9.0,
        "int2-g64": 3.0,
        "int3-g64": 4.0,
        "int4-g64": 5.0,
        "50%": 7.0,
        "70%": 6.0,
        "2:4": 6.5,
    },
    "head": {"dense": 0.0},
    "threads": 2,
}


def profile_rows(number: int, blocks: int = 99, **values: object) -> tuple[Job, list[Table]]:
    """The run, and the figures of the layers of its first blocks. Layers lose the less the later
    they come, down_proj of block 0 most; KL is twice the Fisher estimate."""
    config = {"model": "toy", "formats": ", ".join(FORMATS), "measured": ", ".join(MEASURED)}
    rows: list[Table] = []
    for place, layer in enumerate(resolve_model("toy").facts.linears):
        fisher = FISHER * (40 if layer.name == WORST else 1) / (1 + place)
        kl = np.where([form in MEASURED for form in FORMATS], 2 * fisher, np.nan)
        figures = np.full((len(FIGURES), len(FORMATS) + len(EMBEDDING_FORMATS)), np.nan, np.float32)
        figures[:, : len(FORMATS)] = FISHER / (1 + place), fisher, kl, kl
        if layer.block < blocks:
            name = f"{layer.name}.weight"
            stored = TensorProfile(name, layer.block, layer.module, DENSE, SENSITIVITY, figures)
            table, row = profile_row(number, stored)
            rows.append(table(**row))
    return job(number, kind="profile", config=config, kept_stage=None, **values), rows
