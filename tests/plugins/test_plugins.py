"""A pruner, a quantizer and a drafter that live in one plugin file each, estimated and run.

They run in a process of their own, as SLIMSCOPE_PLUGINS is read when Slimscope starts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

DECLARED = """
import json, sys
from pathlib import Path
from backend.checkpoints import Checkpoints
from backend.drafters.config import DrafterConfig, TrainingConfig, arm_of
from backend.quantization.config import STAGE_LABELS, DLQATConfig
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.pruners import DECLARED_PRUNERS
from backend.reporter import SilentReporter
folder, reporter = Path(sys.argv[1]), SilentReporter()

sds = SDSConfig(base="leftmost", pattern="2:4", redense_steps=2, adjust_steps=2)
assert "leftmost" in SDSConfig.model_json_schema()["properties"]["base"]["enum"]
assert "leftmost" in DECLARED_PRUNERS

dlqat = DLQATConfig(
    stages=["toy-awq", "dlqat", "rtn"], range_search="tight", bits=4, group_size=16, steps=1,
    batch=1, length=16, start="rounded",
)
assert dlqat.stages == ("rtn", "toy-awq", "dlqat")
assert STAGE_LABELS["toy-awq"] == "Toy AWQ"
assert [*STAGE_LABELS][4:7] == ["awq", "toy-awq", "rotated-gptq"]

amphista = DrafterConfig(architecture="linear-heads", heads=2, draft_vocabulary=0)
assert arm_of(amphista.model_dump()) == "linear-heads"
"""

ESTIMATED = """
from dataclasses import replace
from backend.models.memory import host_memory
from backend.models.sources.catalog import inspect
from backend.pruning.plan import pruning_plan
from jobs.dlqat.kind import DLQATJob
from jobs.dlqat.kind import planned_layers
from jobs.kind import get_kind
from jobs.sds.kind import SDSJob, disk_space
kind, facts = get_kind("dlqat"), inspect("toy")
assert kind.stages["toy-awq"] == "Toy AWQ"
assert "toy-awq" in DLQATJob.model_json_schema()["properties"]["keep"]["enum"]
config = DLQATJob(
    model="toy", stages=["rtn", "toy-awq"], keep="toy-awq", range_search="tight", start="rounded",
)
needs = kind.requirements(config)
tokens = config.segments * min(512, facts.context)
layers = planned_layers(needs.plan, facts)
(products,) = (
    x.amount for x in needs.work if (x.phase, x.unit) == ("make toy-awq", "bfloat16")
)
assert products == 2 * tokens * sum(x.weights for x in layers)
auto = DLQATJob(**config.model_dump() | {"keep": "auto"})
assert auto.candidates == ["rtn", "toy-awq"]

facts = replace(facts, dtype="bfloat16")
configs = (SDSJob(model="toy", base=base) for base in ("leftmost", "wanda", "sparsegpt"))
plans = [(each, pruning_plan(each, facts.linears)) for each in configs]
sizes = {disk_space(each, plan, facts, host_memory()).bytes for each, plan in plans}
assert len(sizes) == 1  # a stage takes the disk of the model whatever the pruner
assert "torch" not in sys.modules
import torch
"""

PRUNER = """
from backend.pruning.plan import pruning_plan
from backend.pruning.sds import run_sds
from backend.pruning.stage_store import install
from backend.models.blocks import all_linears, block_linears
from backend.models.loading import load
model = load("toy").model
ids = torch.randint(100, (8, 32), generator=torch.Generator().manual_seed(0))
checkpoints = Checkpoints(folder / "sds")
result = run_sds(model, ids, sds, pruning_plan(sds, all_linears(model)), checkpoints, reporter)
assert result.zero_share[SDSStage.SDS] == 0.5
install(model, checkpoints, SDSStage.FIRST)
W = next(iter(block_linears(model, 0).values())).read().view(-1, 4)
assert (W[:, 2:] == 0).all() and (W[:, :2] != 0).any()
"""

QUANTIZER = """
from backend.quantization.dlqat.pipeline import DLQAT
from backend.models.loading import load
from backend.quantization.grid import minmax_grid
from backend.quantization.plan import plan
model = load("toy").model
ids = torch.randint(100, (8, 16), generator=torch.Generator().manual_seed(0))
qat = DLQAT(model, ids, ids, ids, dlqat, plan(dlqat, inspect("toy")), Checkpoints(folder / "dlqat"))
for stage in qat.prepare(reporter):
    qat.make(stage, reporter)
    with qat.installed(stage):
        assert model(input_ids=ids).logits.isfinite().all()
assert set(qat.audit(reporter)) == {"rtn", "toy-awq", "dlqat"}
name, layer = next(iter(qat.converted("toy-awq").items()))
W = qat.run.linears[name].read()
grid = minmax_grid(W.view(len(W), -1, 16), 4, "symmetric", 0.9)
assert torch.equal(layer.codes.float(), grid.codes(W))
"""

DRAFTER = """
from backend.drafters.checkpoint import Amphista, BaseFingerprint, pack
from backend.drafters.training.hidden_state_cache import SequenceSources, collect
from backend.drafters.registry import build_drafter
from backend.drafters.generate import generate
from backend.decoding.target_model import TargetModel
from backend.drafters.training.trainer import DrafterTrainer
from backend.decoding.draft_tree import grow
from backend.models.loading import load
target = TargetModel(load("toy").model)
prompts = [[n, n + 1, n + 2] for n in range(3, 19)]
sources = SequenceSources(prompts[4:], prompts[:4], limit=16)
learned, heldout = collect(target, sources, Checkpoints(folder / "data"), reporter)
drafter = build_drafter(amphista, target, torch.arange(target.vocabulary))
drafter.initialize(target, learned.spread(64))
training = TrainingConfig(minutes=0, steps=3)
trainer = DrafterTrainer(
    drafter, target, learned, heldout, training, 0, Checkpoints(folder / "run"), reporter
)
accuracy = trainer.run()
saved = pack(drafter, BaseFingerprint.of(target), grow(accuracy.answers), {}, {}, 32)
saved.save(folder)
assert json.loads((folder / "config.json").read_text())["drafter"]["architecture"] == "linear-heads"
loaded = Amphista.load(folder)
assert type(loaded.bind(target)).__name__ == "LinearHeads"
plain = [token.id for token in generate(target, None, [5, 6, 7], 12)]
assert [token.id for token in generate(target, loaded, [5, 6, 7], 12, nodes=4)] == plain
"""


def test_a_pruner_a_quantizer_and_a_drafter_are_one_file_each(tmp_path: Path) -> None:
    plugins = [f"tests.plugins.{name}" for name in ("pruner", "quantizer", "drafter")]
    script = "".join((DECLARED, ESTIMATED, PRUNER, QUANTIZER, DRAFTER))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"SLIMSCOPE_PLUGINS": json.dumps(plugins)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
