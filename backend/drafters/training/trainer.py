"""Training of a drafter on cached hidden states. The target model is frozen and not run again.

Each step runs a batch of sequences through the adaptation layers and trains the heads at a random
share of the answer positions, the anchors (`loss`). AdamW, a short warm-up, cosine decay to a
tenth, gradient clipping. New parts are trained in standardized coordinates (`adapted`). The
learning rate of a copied parameter is relative to its root mean square, which differs between
models by a factor of ten.

Data order, anchors and evaluation depend only on seed and step, and checkpoints contain float32
weights and optimizer state, so an interrupted run resumes bit for bit. With a time budget the
number of steps is determined once, from the throughput in the first 2 % of the budget, and stored.

Sizes are rounded so that shapes recur, because the CPU library compiles and caches a kernel for
each shape of bfloat16 products.
"""

import math
import random
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.decoding.target_model import TargetModel
from backend.drafters.config import ANCHOR_SHARE, TrainingConfig
from backend.drafters.registry import Drafter
from backend.drafters.training.hidden_state_cache import CachedSequences, HiddenStateCache
from backend.drafters.training.loss import (
    ROW_STEP,
    AnchorBatch,
    HeadAccuracy,
    loss_and_gradient,
    measure_heads,
    padded,
    rounded_up,
)
from backend.errors import ConfigError
from backend.metric_key import MetricKey
from backend.reporter import Reporter
from backend.training.stage_store import StageStore
from backend.training.trainer import Trainer, cosine_decay

CHECKPOINT = "drafter"
PACE_STEPS, PACE_SKIPPED = 12, 4  # minimum steps to measure the pace; the first ones are slower
PACE_SHARE = 0.02  # share of the time budget in which the pace is measured
SAVE_EVERY_S = 60.0
MAX_EVALUATIONS, MIN_STEPS_BETWEEN = 10, 64
WINDOW = 16  # batches whose sequences are sorted by length together
FLOOR = 0.1  # learning-rate factor at the end
WARMUP = 0.05  # share of the steps with a rising learning rate
EPSILON, DECAY = 1e-8, 0.01  # epsilon and weight decay of AdamW


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the learning rates at `step`.

    Args:
        steps: total number of steps; 0 if it is not known yet.
        warmup: share of the steps with a rising factor.
    """
    if not steps:  # rises to the factor at the end of the pace measurement
        return min(PACE_SHARE / max(warmup, PACE_SHARE), (step + 1) / (PACE_STEPS + 1))
    warmup_steps = max(1, round(warmup * steps))
    if step < warmup_steps:
        return min(1.0, (step + 1) / max(warmup_steps, PACE_STEPS + 1))
    progress = min((step - warmup_steps) / max(1, steps - warmup_steps), 1.0)
    return cosine_decay(math.pi * progress, FLOOR)


def step_count(config: TrainingConfig, seconds: Sequence[float]) -> int:
    """Return the number of steps of a training, given the seconds of its first steps; 0 if it is
    not known yet."""
    if not config.minutes:
        return config.steps
    if len(seconds) < PACE_STEPS or sum(seconds) < PACE_SHARE * 60 * config.minutes:
        return 0
    return max(PACE_STEPS, round(60 * config.minutes / mean(seconds[PACE_SKIPPED:])))


class DrafterTrainer(Trainer):
    """Training of one drafter. `seconds`: time spent over all attempts, including evaluation and
    saving."""

    def __init__(
        self,
        drafter: Drafter,
        target: TargetModel,
        learned: HiddenStateCache,
        heldout: CachedSequences,
        config: TrainingConfig,
        seed: int,
        checkpoints: Checkpoints,
        reporter: Reporter,
    ) -> None:
        store = StageStore(checkpoints, device=str(target.device))
        super().__init__(
            "the drafter",
            dict(drafter.named_parameters()),
            drafter.state_dict(),
            _optimizer(drafter, config),
            store,
            (CHECKPOINT,),
            reporter,
        )
        self.drafter, self.target, self.config, self.seed = drafter, target, config, seed
        self.learned, self.heldout, self.seconds = learned, heldout, 0.0
        self._step_seconds: list[float] = []
        self._saved_at = time.monotonic()
        self.indices = [
            n
            for n, (length, start) in enumerate(zip(learned.lengths, learned.starts, strict=True))
            if length > max(drafter.config.heads, 1 + max(start, 1))  # has at least one anchor
        ]
        if not self.indices:
            raise ConfigError(
                "There is no training data.",
                f"No sequence is longer than the {drafter.config.heads} tokens the heads predict.",
                "Use more or longer text.",
                "answers",
            )

    def run(self) -> HeadAccuracy:
        """Train to the end. Return the final accuracy on the held-out sequences."""
        self.train()
        accuracy = self.evaluate()
        self.save()  # includes the time of the evaluation
        return accuracy

    def begin(self) -> None:
        self.steps = self.steps or step_count(self.config, ())
        self._saved_at = time.monotonic()
        self._report()

    def end_step(self, loss: float, seconds: float) -> None:
        self._step_seconds.append(seconds)
        self.reporter.metric(MetricKey("loss"), loss, self.step)
        if measures_pace := not self.steps:
            self.steps = step_count(self.config, self._step_seconds)
        interval = max(MIN_STEPS_BETWEEN, self.steps // MAX_EVALUATIONS)
        if self.step < self.steps and self.step % interval == 0:
            self.evaluate()
        first_save = len(self._step_seconds) == PACE_STEPS or (measures_pace and self.steps)
        if time.monotonic() - self._saved_at > SAVE_EVERY_S or first_save:
            self.save()
        self._report()

    def rate_factor(self) -> float:
        return rate_factor(self.step, self.steps, WARMUP)

    def backward(self) -> float:
        batch, drafter = self.anchor_batch(self.step), self.drafter
        embedded = self.target.embed(batch.ids[:, 1:]).float()
        with torch.autocast(
            self.target.device.type, torch.bfloat16, enabled=self.target.dtype == torch.bfloat16
        ):
            hidden = batch.hidden[:, :-1].float()
            slots = drafter.anchor_slots(hidden, embedded, batch.rows, batch.positions)
        with torch.no_grad():
            loss, gradient = loss_and_gradient(drafter, slots.detach(), batch)
        slots.backward(gradient)
        return loss

    # data ------------------------------------------------------------------------------------

    def anchor_batch(self, step: int) -> AnchorBatch:
        """Return the batch of a step, which depends only on seed and step."""
        indices = self._sequences(step)
        rows, positions = self._anchors(indices, step)
        sequences = [self.learned[index] for index in indices]
        longest = 1 + padded(max(len(x.ids) for x in sequences) - 1, self.target.context)
        lengths = torch.tensor([len(x.ids) for x in sequences])
        targets = positions[:, None] + torch.arange(2, self.drafter.config.heads + 2)
        valid = targets < lengths[rows, None]
        device = self.target.device

        def padded_batch(name: str) -> Tensor:
            tensors = [getattr(sequence, name) for sequence in sequences]
            batch = tensors[0].new_zeros(len(tensors), longest, *tensors[0].shape[1:])
            for row, tensor in enumerate(tensors):
                batch[row, : len(tensor)] = tensor
            return batch.to(device)

        return AnchorBatch(
            padded_batch("hidden"),
            padded_batch("ids").long(),
            padded_batch("denominator"),
            rows.to(device),
            positions.to(device),
            valid.to(device),
        )

    def _anchors(self, indices: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """Return the sequence and position of each anchor [n], a random share of all answer
        positions. n is rounded up to a multiple of `ROW_STEP` if there are enough positions."""
        rows, positions = [], []
        for row, index in enumerate(indices):
            first, last = self.learned.starts[index] - 1, self.learned.lengths[index] - 2
            answer_positions = torch.arange(max(first, 0), last)
            rows.append(torch.full_like(answer_positions, row))
            positions.append(answer_positions)
        total = sum(map(len, positions))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        count = rounded_up(max(1, round(total * ANCHOR_SHARE)), ROW_STEP)
        selected = torch.randperm(total, generator=generator)[:count].sort().values
        return torch.cat(rows)[selected], torch.cat(positions)[selected]

    def _sequences(self, step: int) -> list[int]:
        """Return the sequences of a step. Epochs are shuffled, and sequences of similar length
        share a batch."""
        epoch, index = divmod(step, math.ceil(len(self.indices) / self.config.batch))
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._batches = epoch, list[list[int]]()
            order, size = list(self.indices), self.config.batch
            rng = random.Random(self.seed * 1_000_003 + epoch)
            rng.shuffle(order)
            for start in range(0, len(order), size * WINDOW):
                window = sorted(
                    order[start : start + size * WINDOW], key=self.learned.lengths.__getitem__
                )
                self._batches += [window[n : n + size] for n in range(0, len(window), size)]
            rng.shuffle(self._batches)
        return self._batches[index]

    # reports and checkpoints -----------------------------------------------------------------

    def evaluate(self) -> HeadAccuracy:
        """Measure and report the accuracy on the held-out sequences."""
        accuracy = measure_heads(self.drafter, self.target, self.heldout, self.reporter)
        for key, value in accuracy.figures().items():
            self.reporter.metric(key, value, self.step)
        return accuracy

    def _report(self) -> None:
        if self.steps and self.step >= self.steps:
            return
        activity = f"Training, step {self.step + 1}" + (f" of {self.steps}" if self.steps else "")
        self.reporter.progress(self.step, self.steps or self.config.steps, activity)

    def save(self, **facts: Any) -> None:
        now = time.monotonic()
        self.seconds += now - self._saved_at
        self._saved_at = now
        super().save(steps=self.steps, seconds=self.seconds)

    def restore(self) -> dict[str, Any]:
        facts = super().restore()
        self.steps = facts.get("steps", 0)
        self.seconds = facts.get("seconds", 0.0)
        return facts


def _optimizer(drafter: Drafter, config: TrainingConfig) -> torch.optim.AdamW:
    copied = drafter.copied_parameters()
    copied_ids = {id(p) for p in copied}
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in drafter.parameters() if id(p) not in copied_ids],
            "lr": config.learning_rate,
        }
    ]
    for parameter in copied:  # equals training in units of the parameter's size
        size = parameter.detach().float().square().mean().sqrt().item() or 1.0
        scaled = {
            "lr": config.learning_rate * size,
            "eps": EPSILON / size,
            "weight_decay": DECAY / size,
        }
        groups.append({"params": [parameter], "size": size, **scaled})
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=EPSILON, weight_decay=DECAY, fused=True)
