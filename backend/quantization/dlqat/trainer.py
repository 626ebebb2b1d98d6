"""Training of all trained stages: AdamW, warm-up, cosine schedule, gradient clipping.

    rate(k) = rate * (k + 1) / w                                  in the first w steps
    rate(k) = rate * (1 + cos(pi (k - w) / (steps - w))) / 2      after them

The gradient of a step is the mean over all its predicted tokens, whatever the gradient
accumulation.

Rates that suit one model may be too high for another. A training that diverges, or ends with a
significantly higher loss on held-out text than it began with, is repeated from its start at a
quarter of the rate, at most twice (ours).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.metric_key import MetricKey
from backend.models.blocks import decoder_blocks
from backend.quantization.config import STAGE_LABELS
from backend.quantization.dlqat.losses import Loss
from backend.quantization.dlqat.run import DLQATRun
from backend.quantization.dlqat.stage_store import DLQATStageStore
from backend.reporter import REPLAY, Reporter, stop_if_asked
from backend.statistics.paired import paired_ratio
from backend.text.training import IGNORED_LABEL
from backend.training.optimizer import cosine_decay
from backend.training.trainer import DivergenceError, Trainer

BETAS = (0.9, 0.99)  # runs are short: the second moment must settle within tens of steps
WARMUP = 0.05  # share of the steps
SAVE_EVERY = 10  # steps
ATTEMPTS, LOWERED = 3, 0.25  # of a training, and the factor of the rate from one to the next


def rate_factor(step: int, steps: int, warmup: float = WARMUP) -> float:
    """The factor of the learning rates at `step`, counted from 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return cosine_decay(math.pi * (step - rising) / (steps - rising))


def train_stage(
    run: DLQATRun,
    stage: str,
    parameters: Mapping[str, nn.Parameter],
    loss: Loss,
    watch: Callable[[int], None],
    judge: Callable[[], list[float]],
    before: list[float],
    reporter: Reporter,
) -> None:
    """Train the parameters of a stage, which are part of the model of `run`; at lower rates where
    the first is too high.

    Args:
        loss: sequence numbers -> summed loss.
        watch: called with the number of steps done, before the first and after each.
        judge: the losses on the held-out windows as it is now; called after each training.
        before: those at the start.

    Raises:
        DivergenceError: the first one, where it diverges at all rates.
    """
    begun = [p.detach().clone() for p in parameters.values()]
    first = None
    for attempt in range(failed_attempts(run.store, stage), ATTEMPTS):
        with torch.no_grad():
            for parameter, value in zip(parameters.values(), begun, strict=True):
                parameter.copy_(value)
        trainer = StageTrainer(run, stage, parameters, loss, watch, reporter, attempt)
        worse, why = True, "diverged"
        try:
            trainer.train()
            ratio = paired_ratio(judge(), before)
            worse = ratio is not None and ratio.low > 1
            if ratio:
                why = f"raised the held-out perplexity by {100 * (ratio.value - 1):.1f} %"
        except DivergenceError as error:
            first = first or error
            if attempt == ATTEMPTS - 1:
                raise first from error
        if not worse or attempt == ATTEMPTS - 1:
            return
        run.store.save(_failed(stage, attempt), {})
        reporter.log(
            f"{trainer.label}: training at a learning rate of {trainer.peak:g} {why}. It is "
            f"repeated at {LOWERED * trainer.peak:g}."
        )


def failed_attempts(store: DLQATStageStore, stage: str) -> int:
    """How many trainings of a stage had too high a rate."""
    return sum(store.holds(_failed(stage, attempt)) for attempt in range(ATTEMPTS))


def _failed(stage: str, attempt: int) -> str:
    return f".failed-{stage}-{attempt}"  # hidden: not a checkpoint to resume from


class StageTrainer(Trainer):
    """Trains one stage once; `attempt`: how often before. See `train_stage`.

    Attributes:
        peak: the learning rate after the warm-up.
    """

    def __init__(
        self,
        run: DLQATRun,
        stage: str,
        parameters: Mapping[str, nn.Parameter],
        loss: Loss,
        watch: Callable[[int], None],
        reporter: Reporter,
        attempt: int = 0,
    ) -> None:
        self.peak = run.config.rate * LOWERED**attempt
        optimizer = torch.optim.AdamW(
            parameters.values(), self.peak, betas=BETAS, weight_decay=0.0, fused=True
        )
        slots = (f"train-{stage}-{attempt}-0", f"train-{stage}-{attempt}-1")
        super().__init__(
            STAGE_LABELS[stage],
            parameters,
            parameters,
            optimizer,
            run.store,
            slots,
            reporter,
            run.config.steps,
        )
        self.run, self.stage, self.loss, self.watch = run, stage, loss, watch

    def begin(self) -> None:
        self.reporter.progress(self.step, self.steps, REPLAY if self.step else self._doing)
        if self.step == 0:
            self.watch(0)

    def backward(self) -> float:
        rows, total = self.rows(self.step), 0.0
        judged = int((self.run.labels[rows][:, 1:] != IGNORED_LABEL).sum())
        for part in rows.split(self.run.config.batch):
            stop_if_asked(self.reporter)
            loss = self.loss(part) / max(judged, 1)
            loss.backward()
            total += loss.item()
        return total

    def rate_factor(self) -> float:
        return rate_factor(self.step, self.steps)

    def end_step(self, loss: float, seconds: float) -> None:
        self.reporter.metric(MetricKey("loss", self.stage), loss, self.step)
        self.reporter.metric(MetricKey("rate", self.stage), self.optimizer.rate, self.step)
        self.watch(self.step)
        self.reporter.progress(self.step, self.steps, self._doing)
        if self.step % SAVE_EVERY == 0:
            self.save()

    @property
    def _doing(self) -> str:
        return f"Training: {self.label}"

    def rows(self, step: int) -> Tensor:
        """Numbers of the sequences of `step` [accumulate * batch]."""
        count, size = len(self.run.input_ids), self.run.config.batch * self.run.config.accumulate
        places = range(step * size, (step + 1) * size)
        return torch.stack([_order(self.run.seed, p // count, count)[p % count] for p in places])


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
