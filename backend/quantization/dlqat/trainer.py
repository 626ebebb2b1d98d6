"""Training loop of all trained stages: AdamW, warm-up, cosine schedule, gradient clipping.

    rate(k) = rate * (k + 1) / w                                  in the first w steps
    rate(k) = rate * (1 + cos(pi (k - w) / (steps - w))) / 2      after them

The gradient of a step is the mean over all its predicted tokens, whatever the gradient
accumulation and the number of processes that share its sequences. Nothing is random: the sequences
of a step follow from seed, epoch and step, so a run that was killed resumes from its last
checkpoint (parameters and both moments) bit for bit.
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
from backend.models.blocks import decoder_blocks
from backend.quantization.dlqat.config import STAGE_LABELS
from backend.quantization.dlqat.losses import Loss
from backend.quantization.dlqat.run import DLQATRun
from backend.reporter import REPLAY, Reporter, stop_if_asked
from backend.text.training import UNJUDGED
from backend.training import distributed
from backend.training.optimizer import MOMENTS, cosine_decay, optimizer_tensors, restore_optimizer

BETAS = (0.9, 0.99)  # runs are short: the second moment must settle within tens of steps
SLOTS = 2  # alternating checkpoints, so that one is always intact
STATE_KEY = "{entry}/{name}"  # of the optimiser, in a checkpoint


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """The factor of the learning rates at `step`, counted from 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return cosine_decay(math.pi * (step - rising) / (steps - rising))


class StageTrainer:
    """Trains one stage.

    Args:
        parameters: name -> trained parameter; `rates` holds the learning rate of each.
        loss: sequence numbers -> summed loss.
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
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def train(self) -> None:
        """Run all steps after the last checkpoint.

        Raises:
            ComputeError: loss or gradient is not finite; the last good checkpoint is kept.
            CancelledError: cancellation was requested.
        """
        config, done = self.run.config, self._resume()
        doing = f"Training: {STAGE_LABELS[self.stage]}"
        self.reporter.progress(done, config.steps, REPLAY if done else doing)
        if done == 0:
            self.watch(0)
        for step in range(done, config.steps):
            distributed.stop_if_any_asked(self.reporter)
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
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for part in distributed.shard(rows).split(config.batch):
            stop_if_asked(self.reporter)
            loss = self.loss(part) / max(judged, 1)
            loss.backward()
            total += loss.item()
        total = distributed.all_reduce_gradients(total, self.parameters.values())
        self._require_finite("loss", torch.tensor(total), step)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), config.clip)
        self._require_finite("gradient", norm, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, self.rates[0] * factor

    def rows(self, step: int) -> Tensor:
        """Numbers of the sequences of `step` [accumulate * batch]."""
        count, size = len(self.run.input_ids), self.run.config.batch * self.run.config.accumulate
        places = range(step * size, (step + 1) * size)
        return torch.stack([_order(self.run.seed, p // count, count)[p % count] for p in places])

    def _require_finite(self, what: str, value: Tensor, step: int) -> None:
        if torch.isfinite(value):
            return
        last = self._newest()
        raise ComputeError(
            f"The {what} of step {step + 1} of {STAGE_LABELS[self.stage]} is {value.item()}.",
            f"Training diverged; the last good checkpoint is at step {last}."
            if last
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
        tensors |= optimizer_tensors(self.optimizer, self.parameters, STATE_KEY, ("step", *MOMENTS))
        self.run.store.save(self._slot(step), tensors, step=step, seed=self.run.seed)

    def _newest(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        slots = [f"train-{self.stage}-{turn}" for turn in range(SLOTS)]
        return max(int(self.run.store.facts(slot).get("step", 0)) for slot in slots)

    def _resume(self) -> int:
        """Restore the newest checkpoint; return its number of steps."""
        if step := distributed.broadcast_int(self._newest()):
            tensors = self.run.store.tensors(self._slot(step))
            for name, parameter in self.parameters.items():
                parameter.data.copy_(tensors[f"value/{name}"])
            restore_optimizer(self.optimizer, self.parameters, tensors, STATE_KEY, step)
        distributed.broadcast_parameters(self.parameters.values())
        return step


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    """Order of `count` sequences in an epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


@contextmanager
def trainable(model: PreTrainedModel, checkpointing: bool, reporter: Reporter) -> Iterator[None]:
    """Make passes through `model` cancellable at every block, forward and backward.

    Args:
        checkpointing: recompute the activations of a block in the backward pass.
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
            for block in blocks:  # read from the block itself; dropout inside stays off
                stack.callback(setattr, block, "training", block.training)
                block.training = True
        yield
