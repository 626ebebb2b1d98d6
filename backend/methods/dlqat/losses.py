"""What training minimises, summed over the predicted tokens of some rows.

text      -log p(x_t | x_<t)
teacher   KL(p_dense || p),  p_dense live, or cached: its K likeliest tokens and the mass of
          all others as one outcome. From the dense model nothing can be learned about the text
          that it does not know: a gain is a gain in faithfulness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from backend.methods.dlqat.config import TEACHER_TOKENS
from backend.methods.dlqat.linear import DLQATLinear
from backend.methods.dlqat.run import DLQATRun
from backend.reporter import Reporter, stop_if_asked
from backend.text.training import UNJUDGED

TINY = 1e-9  # least mass of the other outcome
TEACHER = "teacher"

Loss = Callable[[Tensor], Tensor]  # row numbers [b] -> summed loss


def logits_of(run: DLQATRun, model: PreTrainedModel, rows: Tensor) -> Tensor:
    """The model's predictions for training rows [b]: logits [b, length, vocabulary]."""
    ids, half = run.input_ids[rows].to(model.device), run.dtype == torch.bfloat16
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def text_loss(run: DLQATRun, model: PreTrainedModel) -> Loss:
    """Next-token prediction."""

    def loss(rows: Tensor) -> Tensor:
        logits = logits_of(run, model, rows)[:, :-1].flatten(0, 1)
        labels = run.labels[rows][:, 1:].flatten().to(logits.device)
        return cross_entropy(logits.float(), labels, reduction="sum", ignore_index=UNJUDGED)

    return loss


def live_teacher_loss(
    run: DLQATRun, model: PreTrainedModel, layers: Mapping[str, DLQATLinear]
) -> Loss:
    """The dense model, which is inside the layers, predicts beside the one that learns."""

    def loss(rows: Tensor) -> Tensor:
        with torch.no_grad(), _teaching(layers):
            wanted = logits_of(run, model, rows)
        logits, total = logits_of(run, model, rows), torch.zeros((), device=model.device)
        for p, q, judged in zip(wanted, logits, _judged(run, rows), strict=True):  # row by row:
            log_p, log_q = p[:-1][judged], q[:-1][judged]  # vocabularies are large
            log_p, log_q = (x.float().log_softmax(-1) for x in (log_p, log_q))
            total = total + kl_div(log_q, log_p, reduction="sum", log_target=True)
        return total

    return loss


def cached_teacher_loss(run: DLQATRun, model: PreTrainedModel) -> Loss:
    """As `live_teacher_loss`, with what `cache_teacher` has kept."""
    held = run.store.tensors(TEACHER)

    def loss(rows: Tensor) -> Tensor:
        logits, total = logits_of(run, model, rows), torch.zeros((), device=model.device)
        at = rows.to(held["tokens"].device)
        for log_p, tokens, q, judged in zip(
            held["log_p"][at].float(), held["tokens"][at], logits, _judged(run, rows), strict=True
        ):
            log_q = q[:-1][judged].float().log_softmax(-1).gather(1, tokens[judged].long())
            log_q, log_p = _with_rest(log_q), _with_rest(log_p[judged])
            total = total + kl_div(log_q, log_p, reduction="sum", log_target=True)
        return total

    return loss


def _with_rest(log_p: Tensor) -> Tensor:
    """Log-probabilities [t, K] and, as one more, that of everything else."""
    rest = (1 - log_p.exp().sum(-1, keepdim=True)).clamp_min(TINY).log()
    return torch.cat([log_p, rest], -1)


@torch.no_grad()
def cache_teacher(run: DLQATRun, reporter: Reporter) -> None:
    """Keeps what the dense model predicts for every training row."""
    if run.store.holds(TEACHER):
        return
    log_p, tokens, count = list[Tensor](), list[Tensor](), len(run.input_ids)
    for rows in torch.arange(count).split(run.config.batch):
        stop_if_asked(reporter)
        reporter.progress(int(rows[0]), count, "The dense model predicts")
        for logits in logits_of(run, run.model, rows):
            top = logits[:-1].float().log_softmax(-1).topk(min(TEACHER_TOKENS, logits.shape[-1]))
            log_p.append(top.values.cpu())
            tokens.append(top.indices.int().cpu())
    run.store.save(TEACHER, {"log_p": torch.stack(log_p), "tokens": torch.stack(tokens)})


def _judged(run: DLQATRun, rows: Tensor) -> Tensor:
    """Which positions predict a token that counts [b, length - 1]."""
    return (run.labels[rows][:, 1:] != UNJUDGED).to(run.model.device)


@contextmanager
def _teaching(layers: Mapping[str, DLQATLinear]) -> Iterator[None]:
    """Inside, every layer computes with its dense weight."""
    for layer in layers.values():
        layer.teaching = True
    try:
        yield
    finally:
        for layer in layers.values():
            layer.teaching = False
