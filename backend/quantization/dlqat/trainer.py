"""Training of all trained stages, LoRA among them: AdamW, warm-up, cosine schedule, gradient
clipping.

    rate(k) = rate * (k + 1) / w                                  in the first w steps
    rate(k) = rate * (1 + cos(pi (k - w) / (steps - w))) / 2      after them

The gradient of a step is the mean over all its predicted tokens, whatever the gradient
accumulation.

Rates that suit one model may be too high for another. A training that diverges, or ends with a
significantly higher loss on held-out text than it began with, is repeated from its start at a
quarter of the rate, at most twice (ours).

Losses are summed over the predicted tokens of some sequences:

text      -log p(x_t | x_<t)
teacher   KL(p_dense || p). The dense model teaches nothing about the text that it does not know
          itself: a gain is a gain in fidelity.

The control is plain LoRA (Hu et al. 2021), not quantized:

    y = x (W0 + c B A)^T + b,   c as in `linear`,   taken as   base(x) + c (x A^T) B^T

Same sequences, steps and schedule as DL-QAT, so that what is learned from the text is not mistaken
for an effect of the method. A is initialized as in DL-QAT, B at zero."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, linear, pad
from transformers import PreTrainedModel

from backend.metric_key import MetricKey
from backend.models.blocks import decoder_blocks, swap_modules
from backend.quantization.config import ALPHA, STAGE_LABELS, DLQATStage
from backend.quantization.dlqat.linear import DLQATLinear, new_factors, update_factor
from backend.quantization.dlqat.run import DLQATRun, DLQATStageStore, stage_name
from backend.reporter import REPLAY, Reporter, stop_if_asked
from backend.statistics.paired import paired_ratio
from backend.text.training import IGNORED_LABEL
from backend.training.trainer import DivergenceError, Trainer, cosine_decay, summed_loss

Loss = Callable[[Tensor], Tensor]  # sequence numbers [b] -> summed loss
WARMUP = 0.05  # share of the steps
SAVE_EVERY = 10  # steps
ATTEMPTS, LOWERED = 3, 0.25  # of a training, and the factor of the rate from one to the next


def predict(run: DLQATRun, model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Logits [b, length, vocabulary] for training sequences [b]."""
    ids, half = run.input_ids[rows].to(model.device), run.dtype == torch.bfloat16
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def text_loss(run: DLQATRun, model: PreTrainedModel) -> Loss:
    """Cross-entropy of next-token prediction."""

    def loss(rows: Tensor) -> Tensor:
        logits = predict(run, model, rows).flatten(0, 1)
        labels = next_labels(run, rows).to(logits.device)

        def judge(q: Tensor, at: slice) -> Tensor:
            return cross_entropy(q, labels[at], reduction="sum", ignore_index=IGNORED_LABEL)

        return summed_loss(logits, judge)

    return loss


def teacher_loss(run: DLQATRun, model: PreTrainedModel, layers: Mapping[str, DLQATLinear]) -> Loss:
    """KL to the dense model, which the layers still contain, run at every step."""
    dense = {name: layer.base for name, layer in layers.items()}

    def loss(rows: Tensor) -> Tensor:
        with torch.no_grad(), swap_modules(model, dense):
            teacher = predict(run, model, rows).flatten(0, 1)
        judged = (next_labels(run, rows) != IGNORED_LABEL).to(teacher.device)

        def judge(q: Tensor, at: slice) -> Tensor:
            known = judged[at]
            log_p, log_q = (x[known].float().log_softmax(-1) for x in (teacher[at], q))
            return kl_div(log_q, log_p, reduction="sum", log_target=True)

        return summed_loss(predict(run, model, rows).flatten(0, 1), judge)

    return loss


def next_labels(run: DLQATRun, rows: Tensor) -> Tensor:
    """The label of the token behind each of training sequences [b]: [b * length]; the last has
    none."""
    return pad(run.labels[rows][:, 1:], (0, 1), value=IGNORED_LABEL).flatten()


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
            parameters.values(),
            self.peak,
            betas=(0.9, 0.99),  # runs are short: the second moment must settle in tens of steps
            weight_decay=0.0,
            fused=True,
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


class LoRALinear(nn.Module):
    """Replaces a linear [out, in] = `shape` during LoRA training; itself it is not changed."""

    def __init__(
        self,
        base: nn.Module,
        shape: tuple[int, int],
        rank: int,
        factor: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base, self.factor = base, factor
        A, B = new_factors(shape, rank, base.get_parameter("weight").device, generator)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    def merged(self, W: Tensor) -> Tensor:
        """W0 + c B A [out, in] in the dtype of `W`, the weights of the base."""
        return torch.addmm(W, self.B.detach(), self.A.detach(), alpha=self.factor)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + self.factor * linear(linear(x.to(self.A.dtype), self.A), self.B)


def train_lora(run: DLQATRun, reporter: Reporter) -> None:
    """Train A and B beside every quantized linear and store them as the stage "lora"."""
    config, generator = run.config, torch.Generator().manual_seed(run.seed)
    layers = {
        name: LoRALinear(
            x.layer, x.shape, config.rank, update_factor(x.read(), ALPHA, config.rank), generator
        )
        for name, x in run.linears.items()
    }
    parameters = {
        f"{name}.{part}": parameter
        for name, layer in layers.items()
        for part, parameter in layer.named_parameters(recurse=False)
    }

    def judge() -> list[float]:
        """The held-out losses of the merged weights, which the native decoder can read."""
        merged = {n: run.passed(layers[n].merged(x.read())) for n, x in run.linears.items()}
        bases = {n: layer.base for n, layer in layers.items()}
        with swap_modules(run.model, bases), run.with_weights(merged):
            return run.heldout_losses(reporter)

    with swap_modules(run.model, layers), trainable(run.model, config.checkpointing, reporter):
        loss = text_loss(run, run.model)
        train_stage(
            run, DLQATStage.LORA, parameters, loss, lambda _: None, judge, judge(), reporter
        )
    run.store.save(stage_name(DLQATStage.LORA), {n: p.detach() for n, p in parameters.items()})
