"""Training losses, summed over the predicted tokens of some sequences.

text      -log p(x_t | x_<t)
teacher   KL(p_dense || p). The dense model teaches nothing about the text that it does not know
          itself: a gain is a gain in fidelity.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, pad
from transformers import PreTrainedModel

from backend.models.patching import swap_modules
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.dlqat.run import DLQATRun
from backend.text.training import IGNORED_LABEL
from backend.training.vocabulary_loss import summed_loss

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
