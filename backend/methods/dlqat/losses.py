"""Training losses, summed over the predicted tokens of some sequences.

text      -log p(x_t | x_<t)
teacher   KL(p_dense || p),  p_dense live, or cached: its K most likely tokens and the mass of all
          others as one outcome. The dense model teaches nothing about the text that it does not
          know itself: a gain is a gain in fidelity.
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

TINY = 1e-9  # minimum mass of the "all others" outcome
TEACHER = "teacher"

Loss = Callable[[Tensor], Tensor]  # sequence numbers [b] -> summed loss


def predict(run: DLQATRun, model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Logits [b, length, vocabulary] for training sequences [b]."""
    ids, half = run.input_ids[rows].to(model.device), run.dtype == torch.bfloat16
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def text_loss(run: DLQATRun, model: PreTrainedModel) -> Loss:
    """Cross-entropy of next-token prediction."""

    def loss(rows: Tensor) -> Tensor:
        logits = predict(run, model, rows)[:, :-1].flatten(0, 1)
        labels = run.labels[rows][:, 1:].flatten().to(logits.device)
        return cross_entropy(logits.float(), labels, reduction="sum", ignore_index=UNJUDGED)

    return loss


def live_teacher_loss(
    run: DLQATRun, model: PreTrainedModel, layers: Mapping[str, DLQATLinear]
) -> Loss:
    """KL to the dense model, which the layers still contain, run at every step."""

    def loss(rows: Tensor) -> Tensor:
        with torch.no_grad(), _teaching(layers):
            teacher = predict(run, model, rows)
        logits, total = predict(run, model, rows), torch.zeros((), device=model.device)
        for p, q, predicted in zip(
            teacher, logits, _predicted(run, rows), strict=True
        ):  # row by row:
            log_p, log_q = p[:-1][predicted], q[:-1][predicted]  # vocabularies are large
            log_p, log_q = (x.float().log_softmax(-1) for x in (log_p, log_q))
            total = total + kl_div(log_q, log_p, reduction="sum", log_target=True)
        return total

    return loss


def cached_teacher_loss(run: DLQATRun, model: PreTrainedModel) -> Loss:
    """As `live_teacher_loss`, with the predictions of `cache_teacher`."""
    cached = run.store.tensors(TEACHER)

    def loss(rows: Tensor) -> Tensor:
        logits, total = predict(run, model, rows), torch.zeros((), device=model.device)
        at = rows.to(cached["tokens"].device)
        for log_p, tokens, q, predicted in zip(
            cached["log_p"][at].float(),
            cached["tokens"][at],
            logits,
            _predicted(run, rows),
            strict=True,
        ):
            log_q = q[:-1][predicted].float().log_softmax(-1).gather(1, tokens[predicted].long())
            log_q, log_p = _with_rest(log_q), _with_rest(log_p[predicted])
            total = total + kl_div(log_q, log_p, reduction="sum", log_target=True)
        return total

    return loss


def _with_rest(log_p: Tensor) -> Tensor:
    """Append to log-probabilities [t, K] that of all other tokens together."""
    rest = (1 - log_p.exp().sum(-1, keepdim=True)).clamp_min(TINY).log()
    return torch.cat([log_p, rest], -1)


@torch.no_grad()
def cache_teacher(run: DLQATRun, reporter: Reporter) -> None:
    """Store the most likely tokens of the dense model for every training sequence."""
    if run.store.holds(TEACHER):
        return
    log_p, tokens, count = list[Tensor](), list[Tensor](), len(run.input_ids)
    for rows in torch.arange(count).split(run.config.batch):
        stop_if_asked(reporter)
        reporter.progress(int(rows[0]), count, "Caching teacher predictions")
        for logits in predict(run, run.model, rows):
            top = logits[:-1].float().log_softmax(-1).topk(min(TEACHER_TOKENS, logits.shape[-1]))
            log_p.append(top.values.cpu())
            tokens.append(top.indices.int().cpu())
    run.store.save(TEACHER, {"log_p": torch.stack(log_p), "tokens": torch.stack(tokens)})


def _predicted(run: DLQATRun, rows: Tensor) -> Tensor:
    """Positions whose next token is not ignored [b, length - 1]."""
    return (run.labels[rows][:, 1:] != UNJUDGED).to(run.model.device)


@contextmanager
def _teaching(layers: Mapping[str, DLQATLinear]) -> Iterator[None]:
    """Temporarily compute every layer with its dense weight."""
    for layer in layers.values():
        layer.teaching = True
    try:
        yield
    finally:
        for layer in layers.values():
            layer.teaching = False
