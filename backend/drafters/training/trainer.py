"""Train a drafter on cached hidden states; the target model stays frozen and is not run again.

Each step runs a batch of sequences through the adaptation layers and trains the heads at a random
share of the answer positions, the anchors (`loss`). AdamW, a short warm-up, cosine decay to a
tenth, gradient clipping. Copied layers have a lower learning rate than new parts.

Data order, anchors and evaluation depend on seed and step alone, and checkpoints hold float32
weights and optimiser state, so an interrupted run resumes bit for bit. With a time budget the
number of steps is set once, from the throughput in the first 2 % of the budget, and stored.

Several processes share the sequences of a step, and the anchors in them; the loss and its gradient
are those of the whole batch.

Shapes recur on purpose: for bfloat16 products the CPU library compiles and caches a kernel for each
shape.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from backend.checkpoints import Checkpoints
from backend.decoding.target_model import TargetModel
from backend.drafters.config import ANCHOR_SHARE, TrainingConfig
from backend.drafters.data.hidden_state_cache import CachedSequences, HiddenStateCache
from backend.drafters.registry import Drafter
from backend.drafters.training.head_accuracy import HeadAccuracy, measure_heads
from backend.drafters.training.loss import (
    ROW_STEP,
    AnchorBatch,
    loss_and_gradient,
    padded,
    rounded_up,
)
from backend.errors import ComputeError, ConfigError
from backend.metric_key import MetricKey
from backend.reporter import Reporter
from backend.training import distributed
from backend.training.optimizer import (
    MOMENTS,
    cosine_decay,
    optimiser_tensors,
    restore_optimiser,
)

CHECKPOINT = "drafter"
STATE_KEY = "{name}.{entry}"  # of the optimiser, in a checkpoint
PACE_STEPS, PACE_SKIPPED = 12, 4  # at least; the first steps are slower than the rest
PACE_SHARE = 0.02  # of the budget, in which the pace is measured
SAVE_EVERY_S = 60.0
EVALUATIONS = 10
CLIP = 1.0
WINDOW = 16  # batches whose sequences are sorted by length together
FLOOR = 0.1  # of the rate, at the end
WARMUP = 0.05  # share of the steps with a rising learning rate
COPIED_RATE = 0.2  # learning rate of copied layers, as a share of that of new ones


@dataclass
class TrainingSchedule:
    """Progress of the training: `step` of `steps` (0 until it is known), and the `seconds` spent,
    evaluation and saving included."""

    step: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def factor(self) -> float:
        """The factor of the learning rates at this step."""
        if not self.steps:  # rises to its level when the throughput is known
            return min(PACE_SHARE / WARMUP, (self.step + 1) / (PACE_STEPS + 1))
        warm = max(1, round(WARMUP * self.steps))
        if self.step < warm:
            return min(1.0, (self.step + 1) / max(warm, PACE_STEPS + 1))
        share = (self.step - warm) / max(1, self.steps - warm)
        return cosine_decay(math.pi * min(share, 1.0), FLOOR)

    def set_steps(self, config: TrainingConfig, seconds: list[float]) -> None:
        """Set the number of steps once the throughput is known."""
        if self.steps:
            return
        if not config.minutes:
            self.steps = config.steps
        elif len(seconds) >= PACE_STEPS and sum(seconds) >= PACE_SHARE * 60 * config.minutes:
            self.steps = max(PACE_STEPS, round(60 * config.minutes / mean(seconds[PACE_SKIPPED:])))


class DrafterTrainer:
    """One training run."""

    def __init__(
        self,
        drafter: Drafter,
        target: TargetModel,
        learnt: HiddenStateCache,
        heldout: CachedSequences,
        config: TrainingConfig,
        seed: int,
        checkpoints: Checkpoints,
        reporter: Reporter,
    ) -> None:
        self.drafter, self.target, self.config, self.seed = drafter, target, config, seed
        self.learnt, self.heldout = learnt, heldout
        self.checkpoints, self.reporter = checkpoints, reporter
        self.schedule = TrainingSchedule()
        self.optimiser = _optimiser(drafter, config)
        self._saved_at = time.monotonic()
        self.indices = [
            n
            for n, (length, start) in enumerate(zip(learnt.lengths, learnt.starts, strict=True))
            if length > max(drafter.config.heads, 1 + max(start, 1))  # something to guess from
        ]
        if not self.indices:
            raise ConfigError(
                "There is no training data.",
                f"No sequence is longer than the {drafter.config.heads} tokens the heads predict.",
                "Use more or longer text.",
                "answers",
            )

    def run(self) -> HeadAccuracy:
        """Train to the end; return the final accuracy on the held-out sequences."""
        self.train()
        accuracy = self.evaluate()
        self.save()  # with the time of the evaluation
        return accuracy

    def train(self) -> None:
        """Train to the end: all that a process does which is not the first."""
        self._restore()
        seconds: list[float] = []
        saved = self._saved_at = time.monotonic()
        self.schedule.set_steps(self.config, seconds)
        while not self.schedule.steps or self.schedule.step < self.schedule.steps:
            self._report()
            began = time.perf_counter()
            loss = self.step()
            seconds.append(time.perf_counter() - began)
            self.reporter.metric(MetricKey("loss"), loss, self.schedule.step)
            if open_end := not self.schedule.steps:
                self.schedule.set_steps(self.config, seconds)
                self.schedule.steps = distributed.broadcast_int(self.schedule.steps)
            if self._evaluates():
                self.evaluate()
            first = len(seconds) == PACE_STEPS or (open_end and self.schedule.steps)
            if time.monotonic() - saved > SAVE_EVERY_S or first:
                self.save()
                saved = time.monotonic()
        self.save()

    def step(self) -> float:
        """Run one step; return its loss."""
        batch = self.anchor_batch(self.schedule.step)
        self.optimiser.zero_grad(set_to_none=True)
        mine = self._backward(batch) if len(batch.rows) else 0.0
        loss = distributed.all_reduce_gradients(mine, self.drafter.parameters())
        if not math.isfinite(loss):
            raise ComputeError(
                f"The loss is {loss} at step {self.schedule.step}.",
                "The training diverged.",
                "Lower the learning rates.",
                "rate",
            )
        torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), CLIP)
        factor = self.schedule.factor
        for group in self.optimiser.param_groups:
            group["lr"] = group["full"] * factor
        self.optimiser.step()
        self.schedule.step += 1
        return loss

    def _backward(self, batch: AnchorBatch) -> float:
        """Set the gradients of a batch; return its loss."""
        drafter = self.drafter
        embedded = self.target.embed(batch.ids[:, 1:]).float()
        with torch.autocast(
            self.target.device.type, torch.bfloat16, enabled=self.target.dtype == torch.bfloat16
        ):
            hidden = batch.hidden[:, :-1].float()
            slots = drafter.anchor_slots(hidden, embedded, batch.rows, batch.places)
        with torch.no_grad():
            loss, gradient = loss_and_gradient(drafter, slots.detach(), batch)
        slots.backward(gradient)
        return loss

    # the data --------------------------------------------------------------------------------

    def anchor_batch(self, step: int) -> AnchorBatch:
        """This process's part of the batch of a step; a function of seed and step."""
        indices = self._batch(step)
        rows, places = self._anchors(indices, step)
        anchors, mine = len(rows), rows % distributed.world_size() == distributed.rank()
        rows, places = rows[mine] // distributed.world_size(), places[mine]
        samples = [self.learnt[index] for index in distributed.shard(indices) or indices[:1]]
        longest = 1 + padded(max(len(s.ids) for s in samples) - 1, self.target.context)
        lengths = torch.tensor([len(s.ids) for s in samples])
        targets = places[:, None] + torch.arange(2, self.drafter.config.heads + 2)
        valid = targets < lengths[rows, None]
        if distributed.world_size() > 1:
            # a share has any number of anchors: fill up, so that shapes recur
            spare = rounded_up(len(rows), ROW_STEP) - len(rows)
            rows, places, valid = (  # in front, as anchors of row 0: they stay sorted by row
                pad(each, (0, 0) * (each.dim() - 1) + (spare, 0)) for each in (rows, places, valid)
            )
        device = self.target.device

        def batch(name: str) -> Tensor:
            parts = [getattr(sample, name) for sample in samples]
            whole = parts[0].new_zeros(len(parts), longest, *parts[0].shape[1:])
            for row, part in enumerate(parts):
                whole[row, : len(part)] = part
            return whole.to(device)

        return AnchorBatch(
            batch("hidden"), batch("ids").long(), batch("denominator"),
            rows.to(device), places.to(device), valid.to(device), anchors,
        )  # fmt: skip

    def _anchors(self, indices: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """Sequence and position of each anchor [n]: a random share of all answer positions, with n
        rounded up to a multiple of `ROW_STEP` where there are enough."""
        rows, places = [], []
        for row, index in enumerate(indices):
            first, last = self.learnt.starts[index] - 1, self.learnt.lengths[index] - 2
            found = torch.arange(max(first, 0), last)
            rows.append(torch.full_like(found, row))
            places.append(found)
        total = sum(map(len, places))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        count = rounded_up(max(1, round(total * ANCHOR_SHARE)), ROW_STEP)
        chosen = torch.randperm(total, generator=generator)[:count].sort().values
        return torch.cat(rows)[chosen], torch.cat(places)[chosen]

    def _batch(self, step: int) -> list[int]:
        """Sequences of a step. Epochs are shuffled; sequences of similar length share a batch."""
        size = self.config.batch
        per_epoch = math.ceil(len(self.indices) / size)
        epoch, place = divmod(step, per_epoch)
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        order, size = list(self.indices), self.config.batch
        dice = random.Random(self.seed * 1_000_003 + epoch)
        dice.shuffle(order)
        batches = []
        for start in range(0, len(order), size * WINDOW):
            window = sorted(
                order[start : start + size * WINDOW], key=self.learnt.lengths.__getitem__
            )
            batches += [window[n : n + size] for n in range(0, len(window), size)]
        dice.shuffle(batches)
        return batches

    # reports and checkpoints -----------------------------------------------------------------

    def _evaluates(self) -> bool:
        steps = self.schedule.steps if distributed.is_first() else 0
        return bool(steps) and self.schedule.step % max(1, steps // EVALUATIONS) == 0

    def evaluate(self) -> HeadAccuracy:
        """Measure the accuracy of the heads on held-out sequences and report it."""
        accuracy = measure_heads(self.drafter, self.target, self.heldout, self.reporter)
        for key, value in accuracy.figures().items():
            self.reporter.metric(key, value, self.schedule.step)
        return accuracy

    def _report(self) -> None:
        steps = self.schedule.steps
        words = f"Training, step {self.schedule.step + 1}" + (f" of {steps}" if steps else "")
        self.reporter.progress(self.schedule.step, steps or self.config.steps, words)
        distributed.stop_if_any_asked(self.reporter)

    def save(self) -> None:
        """Write weights, optimiser state and schedule as one checkpoint. Of several processes the
        first does."""
        if not distributed.is_first():
            return
        now = time.monotonic()
        self.schedule.seconds += now - self._saved_at
        self._saved_at = now
        entries = ("step", *MOMENTS)
        state = optimiser_tensors(self.optimiser, self._parameters(), STATE_KEY, entries)
        with self.checkpoints.write(CHECKPOINT) as folder:
            save_file(_plain(self.drafter.state_dict()), folder / "drafter.safetensors")
            save_file(_plain(state), folder / "optimiser.safetensors")
            (folder / "schedule.json").write_text(json.dumps(vars(self.schedule)))

    def _restore(self) -> None:
        """Go on from the checkpoint, if there is one; all processes begin with the same weights."""
        folder = self.checkpoints.find(CHECKPOINT)
        if folder is not None:
            device = str(self.target.device)
            self.drafter.load_state_dict(load_file(folder / "drafter.safetensors", device=device))
            state = load_file(folder / "optimiser.safetensors", device=device)
            restore_optimiser(self.optimiser, self._parameters(), state, STATE_KEY)
            self.schedule = TrainingSchedule(**json.loads((folder / "schedule.json").read_text()))
        distributed.broadcast_parameters(self.drafter.state_dict().values())

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        groups = self.optimiser.param_groups
        return {str(n): p for n, p in enumerate(p for g in groups for p in g["params"])}


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _optimiser(drafter: Drafter, config: TrainingConfig) -> torch.optim.AdamW:
    copied = {id(p) for p in drafter.copied_parameters()}
    groups: list[dict[str, object]] = []
    parts: list[tuple[float, Callable[[torch.nn.Parameter], bool]]] = [
        (config.rate, lambda p: id(p) not in copied),
        (COPIED_RATE * config.rate, lambda p: id(p) in copied),
    ]
    for rate, belongs in parts:
        mine = [p for p in drafter.parameters() if belongs(p)]
        if mine:
            groups.append({"params": mine, "lr": rate, "full": rate})
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
