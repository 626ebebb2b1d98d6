"""Experts of a mixture as separate layers, so that each can be compressed like any other layer.

transformers stores all experts of a block in one parameter [experts, out, in] (or [experts, in,
out]). Here every expert has separate linears whose weights are views of that parameter, so that a
write to one changes the other. `fused` restores the model's original modules for saving.

    y_t = sum over the k experts e selected for token t of  p_te down_e( gate(gate_up_e x_t) )
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.errors import ModelError

PARTS = ("gate_up_proj", "up_proj", "down_proj")


class Expert(nn.Module):
    """One expert, with linears that are views of the parameters of all experts."""

    def __init__(self, fused: Any, number: int) -> None:
        super().__init__()
        self.input_name = "gate_up_proj" if fused.has_gate else "up_proj"
        for part in (self.input_name, "down_proj"):
            self.add_module(part, _view(fused, part, number))
        self._fused = (fused,)  # a tuple, so that it is not registered

    def forward(self, x: Tensor) -> Tensor:
        projected = self.get_submodule(self.input_name)(x)
        fused = self._fused[0]
        activated = fused._apply_gate(projected) if fused.has_gate else fused.act_fn(projected)
        output: Tensor = self.get_submodule("down_proj")(activated)
        return output


class ExpertList(nn.ModuleList):
    """The experts of a block, in place of the original module that contains them all."""

    def __init__(self, fused: Any) -> None:
        super().__init__(Expert(fused, number) for number in range(fused.num_experts))
        self.fused = (fused,)

    def forward(self, states: Tensor, selected: Tensor, weights: Tensor) -> Tensor:
        """Sum the outputs [tokens, d] of selected experts [tokens, k] with weights [tokens, k]."""
        output = torch.zeros_like(states)
        for number, expert in enumerate(self):
            tokens, ranks = torch.where(selected == number)
            if len(tokens):
                weighted = expert(states[tokens]) * weights[tokens, ranks, None]
                output.index_add_(0, tokens, weighted.to(output.dtype))
        return output


def split_experts(model: PreTrainedModel) -> None:
    """Replace the experts of `model` by separate linears. Raises ModelError: the model computes its
    experts in an unsupported way."""
    for name, module in list(model.named_modules()):
        if any(isinstance(p, nn.Parameter) and p.dim() == 3 for p in _parts(module)):
            _check_supported(model, name, module)
            model.set_submodule(name, ExpertList(module))


def _parts(module: nn.Module) -> list[nn.Parameter | None]:
    return [module._parameters.get(part) for part in PARTS]


def _check_supported(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    attributes = ("num_experts", "is_transposed", "has_gate")
    has_attributes = all(hasattr(module, attribute) for attribute in attributes)
    if not has_attributes or getattr(module, "has_post_expert_norm", False):
        raise ModelError(
            f"The experts of {type(model).__name__} cannot be separated.",
            f"{name} ({type(module).__name__}) computes them in an unsupported way.",
            "Choose another model. Weight statistics can be taken of any model.",
            field="model",
        )


def _view(fused: Any, part: str, number: int) -> nn.Linear:
    """A linear whose weight and bias are views of the parameters of all experts."""
    parameter = fused.get_parameter(part).detach()[number]
    weight = parameter.T if fused.is_transposed else parameter
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if fused.has_bias:
        bias = fused.get_parameter(f"{part}_bias").detach()[number]
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


@contextmanager
def fused(model: PreTrainedModel) -> Iterator[None]:
    """Restore the model's original expert modules inside the context, with the current weights."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, ExpertList)}
    original_data: list[tuple[nn.Parameter, Tensor]] = []
    for name, module in lists.items():
        original_data += _gather(module)
        model.set_submodule(name, module.fused[0])
    try:
        yield
    finally:
        for parameter, data in original_data:
            parameter.data = data
        for name, module in lists.items():
            model.set_submodule(name, module)


def _gather(experts: ExpertList) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Copy weights that are no longer views (such as those of a trained layer) into the parameter
    of all experts. Yield each changed parameter with its original data."""
    module = experts.fused[0]
    for part in (p for p in PARTS if p in module._parameters):
        parameter: nn.Parameter = module.get_parameter(part)
        weights = [expert.get_submodule(part).get_parameter("weight") for expert in experts]
        oriented = [weight.T if module.is_transposed else weight for weight in weights]
        pairs = zip(oriented, parameter, strict=True)
        if any(weight.data_ptr() != view.data_ptr() for weight, view in pairs):
            yield parameter, parameter.data
            copies = [weight.detach().to(parameter.dtype) for weight in oriented]
            parameter.data = torch.stack(copies)
