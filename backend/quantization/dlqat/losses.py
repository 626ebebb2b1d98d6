"""Training losses, summed over the predicted tokens of some sequences.

text      -log p(x_t | x_<t)
teacher   KL(p_dense || p). The dense model teaches nothing about the text that it does not know
          itself: a gain is a gain in fidelity.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from backend.models.patching import swap_modules
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.dlqat.run import DLQATRun
from backend.text.training import IGNORED_LABEL

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
        return cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED_LABEL)

    return loss


def teacher_loss(run: DLQATRun, model: PreTrainedModel, layers: Mapping[str, DLQATLinear]) -> Loss:
    """KL to the dense model, which the layers still contain, run at every step."""
    dense = {name: layer.base for name, layer in layers.items()}

    def loss(rows: Tensor) -> Tensor:
        with torch.no_grad(), swap_modules(model, dense):
            teacher = predict(run, model, rows)
        logits, total = predict(run, model, rows), torch.zeros((), device=model.device)
        judged = (run.labels[rows][:, 1:] != IGNORED_LABEL).to(
            model.device
        )  # the next token counts
        for p, q, predicted in zip(teacher, logits, judged, strict=True):  # row by row:
            log_p, log_q = p[:-1][predicted], q[:-1][predicted]  # vocabularies are large
            log_p, log_q = (x.float().log_softmax(-1) for x in (log_p, log_q))
            total = total + kl_div(log_q, log_p, reduction="sum", log_target=True)
        return total

    return loss
