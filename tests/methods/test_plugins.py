"""A pruner, a quantizer and a drafter that live in one plugin file each, run end to end.

Each runs in a process of its own, as SLIMSCOPE_PLUGINS is read when Slimscope starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PRUNER = """
import sys
from backend.methods.sds.config import SDSConfig
from backend.methods.sds.pruners import DECLARED_PRUNERS
config = SDSConfig(base="leftmost", pattern="2:4", redense_steps=2, adjust_steps=2)
assert "leftmost" in SDSConfig.model_json_schema()["properties"]["base"]["enum"]
assert DECLARED_PRUNERS["leftmost"].facts["keeps_weights"]
assert "torch" not in sys.modules

import torch
from pathlib import Path
from backend.checkpoints import Checkpoints
from backend.methods.sds.config import SDSStage
from backend.methods.sds.pipeline import install, run_sds
from backend.models.blocks import block_linears
from backend.models.loading import load
from backend.reporter import SilentReporter
model = load("toy").model
ids = torch.randint(100, (8, 32), generator=torch.Generator().manual_seed(0))
checkpoints = Checkpoints(Path(sys.argv[1]))
result = run_sds(model, ids, config, checkpoints, SilentReporter())
assert result.zero_share[SDSStage.SDS] == 0.5
install(model, checkpoints, SDSStage.FIRST)
W = next(iter(block_linears(model, 0).values())).read().view(-1, 4)
assert (W[:, 2:] == 0).all() and (W[:, :2] != 0).any()
"""


def run(script: str, plugin: str, folder: Path) -> None:
    env = os.environ | {"SLIMSCOPE_PLUGINS": json.dumps([f"tests.plugins.{plugin}"])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_pruner_is_one_file(tmp_path: Path) -> None:
    run(PRUNER, "pruner", tmp_path)
