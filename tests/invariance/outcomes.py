"""Every method on a model in memory, and what came of it: what stays of two runs to be compared."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.heldout import heldout_losses
from backend.checkpoints import Checkpoints
from backend.decoding.target_model import TargetModel
from backend.drafters.config import DrafterConfig, TrainingConfig
from backend.drafters.registry import build_drafter
from backend.drafters.training.hidden_state_cache import SequenceSources, collect
from backend.drafters.training.trainer import DrafterTrainer
from backend.metric_key import MetricKey
from backend.models.blocks import all_linears, decoder_blocks
from backend.pruning.config import SDSConfig
from backend.pruning.plan import pruning_plan
from backend.pruning.pruners import DECLARED_PRUNERS
from backend.pruning.sds import run_sds
from backend.pruning.stage_store import SDSStageStore
from backend.quantization.config import POST_TRAINING, DLQATConfig
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.plan import plan
from backend.reporter import SilentReporter


@dataclass(frozen=True)
class Outcome:
    """What a method made of a model.

    Attributes:
        kept: the stage it keeps; "" where nothing is chosen.
        entries: stage -> full name -> mask or codes [out, in].
        losses: stage -> nats per token on held-out text; of a drafter of its training, the first
            third and the last.
    """

    kept: str
    entries: dict[str, dict[str, Tensor]]
    losses: dict[str, float]

    @property
    def last(self) -> float:
        """The loss of the last stage."""
        return [*self.losses.values()][-1]

    @property
    def end(self) -> float:
        """The loss of the stage that is kept, or of the last."""
        return self.losses[self.kept] if self.kept else self.last


Method = Callable[[PreTrainedModel, Tensor], Outcome]  # model, token ids [n, L] -> outcome


def pruned(model: PreTrainedModel, rows: Tensor, **fields: Any) -> Outcome:
    """SDS, or the part of it that the fields of its config leave."""
    few = {"redense_steps": 5, "adjust_steps": 5, "precision": "float32"}
    config = SDSConfig.model_validate({**few, **fields})
    linears, held = all_linears(model), len(rows) // 4
    with TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        planned = pruning_plan(config, linears)
        result = run_sds(
            model,
            rows[:-held],
            config,
            planned,
            checkpoints,
            SilentReporter(),
            heldout=rows[-held:],
        )
        store, blocks = SDSStageStore(checkpoints), range(len(decoder_blocks(model)))
        masks: dict[str, dict[str, Tensor]] = {}
        for stage in config.stages[1:]:
            stored = [store.weights(stage, block) for block in blocks]
            masks[stage] = {x.name: stored[x.block][x.module] != 0 for x in linears}
    return Outcome(result.kept, masks, dict(result.heldout))


def quantized(model: PreTrainedModel, rows: Tensor, stage: str, **fields: Any) -> Outcome:
    """A stage of a quantization run, on three quarters of the text."""
    few = {
        "bits": 3,
        "group_size": 32,
        "rank": 4,
        "steps": 8,
        "batch": 2,
        "saved_precision": "float32",
        "length": rows.shape[1],
        "precision": "float32",
        "stages": [stage],
    }
    config = DLQATConfig.model_validate({**few, **fields})
    linears, held = all_linears(model), len(rows) // 4
    facts: Any = SimpleNamespace(linears=linears, architecture=type(model).__name__)
    fit = rows[:-held]
    with TemporaryDirectory() as folder:
        made = plan(config, facts)
        qat = DLQAT(model, fit, fit, fit, config, made, Checkpoints(Path(folder)))
        for each in qat.prepare(SilentReporter()):
            qat.make(each, SilentReporter())
        codes = {name: x.codes for name, x in qat.converted(stage).items()}
        with qat.installed(stage):
            loss = fmean(heldout_losses(model, rows[-held:], torch.float32))
    return Outcome("", {stage: codes}, {stage: loss})


def drafted(model: PreTrainedModel, rows: Tensor, **fields: Any) -> Outcome:
    """A drafter, trained for a few steps on three quarters of the text."""
    target, held = TargetModel(model), len(rows) // 4
    config = DrafterConfig.model_validate({"draft_vocabulary": 0, "heads": 2, **fields})
    short = TrainingConfig(minutes=0, steps=12, batch=4, precision="float32")
    sources = SequenceSources(rows[:-held].tolist(), rows[-held:].tolist(), limit=0)
    with TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        learned, heldout = collect(target, sources, checkpoints, SilentReporter())
        torch.manual_seed(0)
        drafter = build_drafter(config, target, torch.arange(target.vocabulary))
        drafter.initialize(target, learned.spread(512))
        told = _Losses()
        DrafterTrainer(drafter, target, learned, heldout, short, 0, checkpoints, told).run()
    few = len(told.losses) // 3
    return Outcome("", {}, {"first": fmean(told.losses[:few]), "last": fmean(told.losses[-few:])})


class _Losses(SilentReporter):
    """Keeps the losses of a training."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def metric(self, key: MetricKey, value: float, step: int) -> None:
        if key.family == "loss":
            self.losses.append(value)


FIRST = {"until": "first", "control": False}
METHODS: dict[str, Method] = {
    **{name: partial(pruned, base=name, **FIRST) for name in DECLARED_PRUNERS},
    "owl": partial(pruned, base="wanda", pattern="50%", allocation="owl", **FIRST),
    "sds": pruned,
    "reconstruction": partial(pruned, base="wanda", reconstruct=2, **FIRST),
    **{name: partial(quantized, stage=name) for name in POST_TRAINING},
    **{name: partial(quantized, stage=name) for name in ("block-wise", "dlqat", "dlqat-kd")},
    **{name: partial(drafted, architecture=name) for name in ("medusa", "amphista")},
}
