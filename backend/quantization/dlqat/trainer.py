"""Training of all trained stages, including LoRA: AdamW, warm-up, cosine schedule, gradient
clipping.

    rate(k) = rate * (k + 1) / w                                  in the first w steps
    rate(k) = rate * (1 + cos(pi (k - w) / (steps - w))) / 2      afterwards

The gradient of a step is the mean over all its predicted tokens, independent of the gradient
accumulation.

A rate that suits one model may be too high for another. If training diverges, or significantly
raises the loss on held-out text, it is repeated from its start at a quarter of the rate, at most
twice (ours).

Losses are summed over the predicted tokens of some sequences:

text      -log p(x_t | x_<t)
teacher   KL(p_dense || p). The dense model can teach only what it knows itself, so a gain is a gain
          in fidelity.

The control is plain LoRA (Hu et al. 2021), not quantized:

    y = x (W0 + c B A)^T + b,   c as in `linear`,   computed as   base(x) + c (x A^T) B^T

It uses the sequences, steps and schedule of DL-QAT, which separates the effect of the method from
that of the training text. A is initialized as in DL-QAT, B with zeros."""

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
from backend.models.blocks import LinearWeight, decoder_blocks, swap_modules
from backend.quantization.config import ALPHA, STAGE_LABELS, DLQATStage
from backend.quantization.dlqat.linear import DLQATLinear, new_factors, update_factor
from backend.quantization.dlqat.run import DLQATRun, DLQATStageStore, stage_name
from backend.reporter import REPLAY, Reporter, stop_if_asked
from backend.statistics.paired import paired_ratio
from backend.text.training import IGNORED_LABEL
from backend.training.trainer import DivergenceError, Trainer, cosine_decay, summed_loss

Loss = Callable[[Tensor], Tensor]  # indices of sequences [b] -> summed loss
WARMUP = 0.05  # share of the steps
SAVE_EVERY = 10  # steps
MAX_ATTEMPTS = 3
RETRY_RATE_FACTOR = 0.25  # factor of the learning rate from one attempt to the next


def predict(run: DLQATRun, model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Return the logits [b, length, vocabulary] of training sequences [b]."""
    ids, half = run.input_ids[rows].to(model.device), run.dtype == torch.bfloat16
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def text_loss(run: DLQATRun, model: PreTrainedModel) -> Loss:
    """Return the cross-entropy loss of next-token prediction."""

    def loss(rows: Tensor) -> Tensor:
        logits = predict(run, model, rows).flatten(0, 1)
        labels = next_labels(run, rows).to(logits.device)

        def part_loss(q: Tensor, part: slice) -> Tensor:
            return cross_entropy(q, labels[part], reduction="sum", ignore_index=IGNORED_LABEL)

        return summed_loss(logits, part_loss)

    return loss


def teacher_loss(run: DLQATRun, model: PreTrainedModel, layers: Mapping[str, DLQATLinear]) -> Loss:
    """Return the KL divergence from the dense model, which is run at every step. `layers` still
    contain its weights."""
    dense = {name: layer.base for name, layer in layers.items()}

    def loss(rows: Tensor) -> Tensor:
        with torch.no_grad(), swap_modules(model, dense):
            teacher = predict(run, model, rows).flatten(0, 1)
        labeled = (next_labels(run, rows) != IGNORED_LABEL).to(teacher.device)

        def part_loss(q: Tensor, part: slice) -> Tensor:
            mask = labeled[part]
            log_p, log_q = (x[mask].float().log_softmax(-1) for x in (teacher[part], q))
            return kl_div(log_q, log_p, reduction="sum", log_target=True)

        return summed_loss(predict(run, model, rows).flatten(0, 1), part_loss)

    return loss


def next_labels(run: DLQATRun, rows: Tensor) -> Tensor:
    """Return the label of the token after each token of training sequences [b], as [b * length].
    The last token of a sequence has none."""
    return pad(run.labels[rows][:, 1:], (0, 1), value=IGNORED_LABEL).flatten()


def rate_factor(step: int, steps: int, warmup: float = WARMUP) -> float:
    """Return the factor of the learning rates at `step`, counted from 0."""
    warmup_steps = math.ceil(warmup * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return cosine_decay(math.pi * (step - warmup_steps) / (steps - warmup_steps))


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
    """Train the parameters of a stage, which are part of the model of `run`. Repeat at a lower rate
    if the rate is too high.

    Args:
        loss: returns the summed loss of some sequences.
        watch: called with the number of completed steps, before the first step and after each.
        judge: returns the current losses on the held-out windows; called after each attempt.
        before: losses on the held-out windows before training.

    Raises:
        DivergenceError: training diverges at all rates; the first error is raised.
    """
    initial = [p.detach().to("cpu", copy=True) for p in parameters.values()]
    first_error = None
    for attempt in range(failed_attempts(run.store, stage), MAX_ATTEMPTS):
        with torch.no_grad():
            for parameter, value in zip(parameters.values(), initial, strict=True):
                parameter.copy_(value)
        trainer = StageTrainer(run, stage, parameters, loss, watch, reporter, attempt)
        failed, result, rate = True, "diverged", trainer.peak
        try:
            trainer.train()
            del trainer  # the judge needs the memory of the optimizer
            ratio = paired_ratio(judge(), before)
            failed = ratio is not None and ratio.low > 1
            if ratio:
                result = f"raised the held-out perplexity by {100 * (ratio.value - 1):.1f} %"
        except DivergenceError as error:
            first_error = first_error or error
            if attempt == MAX_ATTEMPTS - 1:
                raise first_error from error
        if not failed or attempt == MAX_ATTEMPTS - 1:
            return
        run.store.save(_failure_name(stage, attempt), {})
        reporter.log(
            f"{STAGE_LABELS[stage]}: training at a learning rate of {rate:g} {result}. It is "
            f"repeated at {RETRY_RATE_FACTOR * rate:g}."
        )


def failed_attempts(store: DLQATStageStore, stage: str) -> int:
    """Return the number of attempts at a stage with too high a rate."""
    return sum(store.holds(_failure_name(stage, attempt)) for attempt in range(MAX_ATTEMPTS))


def _failure_name(stage: str, attempt: int) -> str:
    return f".failed-{stage}-{attempt}"  # hidden, because a run cannot resume from it


class StageTrainer(Trainer):
    """Runs one attempt at a stage; see `train_stage`.

    Attributes:
        peak: learning rate after the warm-up.
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
        self.peak = run.config.learning_rate * RETRY_RATE_FACTOR**attempt
        optimizer = torch.optim.AdamW(
            parameters.values(),
            self.peak,
            betas=(0.9, 0.99),  # the second moment must settle within tens of steps
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
        self.reporter.progress(self.step, self.steps, REPLAY if self.step else self._activity)
        if self.step == 0:
            self.watch(0)

    def backward(self) -> float:
        rows, total = self.rows(self.step), 0.0
        tokens = int((self.run.labels[rows][:, 1:] != IGNORED_LABEL).sum())
        for part in rows.split(self.run.config.batch):
            stop_if_asked(self.reporter)
            loss = self.loss(part) / max(tokens, 1)
            loss.backward()
            total += loss.item()
        return total

    def rate_factor(self) -> float:
        return rate_factor(self.step, self.steps)

    def end_step(self, loss: float, seconds: float) -> None:
        self.reporter.metric(MetricKey("loss", self.stage), loss, self.step)
        self.reporter.metric(MetricKey("rate", self.stage), self.optimizer.rate, self.step)
        self.watch(self.step)
        self.reporter.progress(self.step, self.steps, self._activity)
        if self.step % SAVE_EVERY == 0:
            self.save()

    @property
    def _activity(self) -> str:
        return f"Training: {self.label}"

    def rows(self, step: int) -> Tensor:
        """Return the indices of the sequences of `step` [accumulate * batch]."""
        count, size = len(self.run.input_ids), self.run.config.batch * self.run.config.accumulate
        draws = [divmod(n, count) for n in range(step * size, (step + 1) * size)]
        return torch.stack([_epoch_order(self.run.seed, epoch, count)[n] for epoch, n in draws])


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order of `count` sequences in an epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


@contextmanager
def trainable(model: PreTrainedModel, checkpointing: bool, reporter: Reporter) -> Iterator[None]:
    """Make passes through `model` cancellable at every block, forward and backward.

    Args:
        checkpointing: recompute the activations of a block in the backward pass.
    """

    def check(*_: Any) -> None:
        stop_if_asked(reporter)

    def check_both_passes(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        check()
        states = output if isinstance(output, Tensor) else output[0]
        if states.requires_grad:
            states.register_hook(check)

    blocks = decoder_blocks(model)
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(check_both_passes).remove)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            stack.callback(model.gradient_checkpointing_disable)
            for block in blocks:  # blocks checkpoint in training mode; their dropout stays off
                stack.callback(setattr, block, "training", block.training)
                block.training = True
        yield


class LoRALinear(nn.Module):
    """Replacement of a linear [out, in] = `shape` during LoRA training. Does not change `base`."""

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
        """Return W0 + c B A [out, in] in the dtype of `W`, the weights of the base."""
        return torch.addmm(W, self.B.detach(), self.A.detach(), alpha=self.factor)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + self.factor * linear(linear(x.to(self.A.dtype), self.A), self.B)


def train_lora(run: DLQATRun, reporter: Reporter) -> None:
    """Train A and B of every quantized linear and store them as the stage "lora"."""
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

    def merged(x: LinearWeight) -> Tensor:
        return run.in_pass_precision(layers[x.name].merged(x.read()))

    def judge() -> list[float]:
        """Return the held-out losses of the merged weights, which the native decoder can read."""
        bases = {n: layer.base for n, layer in layers.items()}
        with swap_modules(run.model, bases), run.at_stage(DLQATStage.LORA, merged):
            return run.heldout_losses(reporter)

    with swap_modules(run.model, layers), trainable(run.model, config.checkpointing, reporter):
        loss = text_loss(run, run.model)
        train_stage(
            run, DLQATStage.LORA, parameters, loss, lambda _: None, judge, judge(), reporter
        )
    run.store.save(stage_name(DLQATStage.LORA), {n: p.detach() for n, p in parameters.items()})
