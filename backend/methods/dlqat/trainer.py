"""The training loop of every stage that is trained: AdamW, warm-up, cosine, clipped gradients.

    rate(k) = rate * (k + 1) / w                                  in the first w steps
    rate(k) = rate * (1 + cos(pi (k - w) / (steps - w))) / 2      after them

A step's gradient is the mean over all its predicted tokens, in however many passes. Nothing random
happens after the first step: which rows a step reads follows from seed, epoch and step. So a run
that was killed goes on from its last checkpoint (parameters and both moments of the optimiser) to
the very same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.errors import ComputeError
from backend.methods.dlqat.config import STAGE_LABELS
from backend.methods.dlqat.losses import Loss
from backend.methods.dlqat.run import DLQATRun
from backend.models.blocks import decoder_blocks
from backend.reporter import REPLAY, Reporter, stop_if_asked
from backend.text.training import UNJUDGED

BETAS = (0.9, 0.99)  # short runs: the second moment has to settle within tens of steps
SLOTS = 2  # checkpoints that take turns, so that one is whole at any moment
MOMENTS = ("exp_avg", "exp_avg_sq")


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """What learning rates are multiplied by at `step`, counted from 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


class StageTrainer:
    """One stage in training.

    Args:
        parameters: name -> what is trained; `rates` holds the learning rate of each.
        loss: of some rows.
        watch: called with the number of steps done, before the first and after each.
    """

    def __init__(
        self,
        run: DLQATRun,
        stage: str,
        parameters: Mapping[str, nn.Parameter],
        rates: Mapping[str, float],
        loss: Loss,
        watch: Callable[[int], None],
        reporter: Reporter,
    ) -> None:
        self.run, self.stage, self.parameters = run, stage, parameters
        self.loss, self.watch, self.reporter = loss, watch, reporter
        groups = [
            {"params": [p for n, p in parameters.items() if rates[n] == rate], "lr": rate}
            for rate in dict.fromkeys(rates.values())
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]

    def train(self) -> None:
        """All steps that no checkpoint holds.

        Raises:
            MethodFailed: loss or gradient is not finite; the last good checkpoint is kept.
            Stopped: the reporter asked for it.
        """
        config, done = self.run.config, self._resume()
        doing = f"Training: {STAGE_LABELS[self.stage]}"
        self.reporter.progress(done, config.steps, REPLAY if done else doing)
        if done == 0:
            self.watch(0)
        for step in range(done, config.steps):
            loss, rate = self._step(step)
            self.reporter.metric(f"loss/{self.stage}", loss, step + 1)
            self.reporter.metric(f"rate/{self.stage}", rate, step + 1)
            self.watch(step + 1)
            self.reporter.progress(step + 1, config.steps, doing)
            if (step + 1) % config.save_every == 0:
                self._save(step + 1)

    def _step(self, step: int) -> tuple[float, float]:
        """One update; its loss per predicted token, and the learning rate of the first group."""
        config, total = self.run.config, 0.0
        rows = self.rows(step)
        judged = int((self.run.labels[rows][:, 1:] != UNJUDGED).sum())
        factor = rate_factor(step, config.steps, config.warmup)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for part in rows.split(config.batch):
            stop_if_asked(self.reporter)
            loss = self.loss(part) / max(judged, 1)
            self._require_finite("loss", loss, step)
            loss.backward()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), config.clip)
        self._require_finite("gradient", norm, step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return total, self.rates[0] * factor

    def rows(self, step: int) -> Tensor:
        """The numbers of the rows `step` reads [accumulate * batch]."""
        count, size = len(self.run.input_ids), self.run.config.batch * self.run.config.accumulate
        places = range(step * size, (step + 1) * size)
        return torch.stack([_order(self.run.seed, p // count, count)[p % count] for p in places])

    def _require_finite(self, what: str, value: Tensor, step: int) -> None:
        if torch.isfinite(value):
            return
        held = self._newest()
        raise ComputeError(
            f"The {what} of step {step + 1} of {STAGE_LABELS[self.stage]} is {value.item()}.",
            f"Training diverged; the checkpoint of step {held} is the last good one."
            if held
            else "Training diverged before the first checkpoint.",
            "Lower the learning rates, or choose float32 as forward precision.",
            field="rate",
        )

    # checkpoints -------------------------------------------------------------------------------

    def _slot(self, step: int) -> str:
        turn = step // self.run.config.save_every % SLOTS
        return f"train-{self.stage}-{turn}"

    def _save(self, step: int) -> None:
        tensors = {f"value/{name}": p.detach() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            state = self.optimiser.state[parameter]
            tensors |= {f"{moment}/{name}": state[moment] for moment in MOMENTS}
        self.run.store.save(self._slot(step), tensors, step=step, seed=self.run.seed)

    def _newest(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        slots = [f"train-{self.stage}-{turn}" for turn in range(SLOTS)]
        return max(int(self.run.store.facts(slot).get("step", 0)) for slot in slots)

    def _resume(self) -> int:
        """Goes back to the newest checkpoint; how many steps that holds."""
        if not (step := self._newest()):
            return 0
        held = self.run.store.tensors(self._slot(step))
        for name, parameter in self.parameters.items():
            parameter.data.copy_(held[f"value/{name}"])
            state: dict[str, Any] = {moment: held[f"{moment}/{name}"] for moment in MOMENTS}
            self.optimiser.state[parameter] = {"step": torch.tensor(float(step)), **state}
        return step


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    """In which order an epoch goes through `count` rows."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


@contextmanager
def trainable(model: PreTrainedModel, checkpointing: bool, reporter: Reporter) -> Iterator[None]:
    """Inside, passes through `model` can be interrupted at every block, forward and backward.

    Args:
        checkpointing: whether a block's activations are computed again in the backward pass.
    """

    def tick(*_: Any) -> None:
        stop_if_asked(reporter)

    def note(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tick()
        states = output if isinstance(output, Tensor) else output[0]
        if states.requires_grad:
            states.register_hook(tick)

    blocks = decoder_blocks(model)
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(note).remove)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            stack.callback(model.gradient_checkpointing_disable)
            for block in blocks:  # it is looked for on the block; dropout inside stays off
                stack.callback(setattr, block, "training", block.training)
                block.training = True
        yield
