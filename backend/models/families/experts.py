"""The experts of a mixture as linears, so that each can be compressed like any other layer.

transformers keeps all experts of a block in one parameter [experts, out, in] (or [experts, in,
out]). Here every expert has linears of its own, whose weights are views of that parameter: what is
written to one is written to the other. `fused` puts the model's own modules back, for saving.

    y_t = sum over the k experts e chosen for token t of  p_te down_e( gate(gate_up_e x_t) )
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
    """One expert; `inner` and `down_proj` are views of the parameters of all experts."""

    def __init__(self, fused: Any, number: int) -> None:
        super().__init__()
        self.inputs = "gate_up_proj" if fused.has_gate else "up_proj"
        for part in (self.inputs, "down_proj"):
            self.add_module(part, _view(fused, part, number))
        self._fused = (fused,)  # a tuple, so that it is not registered

    def forward(self, x: Tensor) -> Tensor:
        inner = self.get_submodule(self.inputs)(x)
        fused = self._fused[0]
        gated = fused._apply_gate(inner) if fused.has_gate else fused.act_fn(inner)
        output: Tensor = self.get_submodule("down_proj")(gated)
        return output


class ExpertList(nn.ModuleList):
    """Replaces the module of all experts of a block."""

    def __init__(self, fused: Any) -> None:
        super().__init__(Expert(fused, number) for number in range(fused.num_experts))
        self.fused = (fused,)

    def forward(self, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Outputs [tokens, d] of the chosen experts [tokens, k], weighted [tokens, k]."""
        output = torch.zeros_like(states)
        for number, expert in enumerate(self):
            tokens, places = torch.where(chosen == number)
            if len(tokens):
                part = expert(states[tokens]) * weights[tokens, places, None]
                output.index_add_(0, tokens, part.to(output.dtype))
        return output


def split_experts(model: PreTrainedModel) -> None:
    """Give every expert of `model` its own linears. Raises ModelError: its experts are of another
    kind."""
    for name, module in list(model.named_modules()):
        if any(isinstance(p, nn.Parameter) and p.dim() == 3 for p in _parts(module)):
            _check_kind(model, name, module)
            model.set_submodule(name, ExpertList(module))


def _parts(module: nn.Module) -> list[nn.Parameter | None]:
    return [module._parameters.get(part) for part in PARTS]


def _check_kind(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    known = all(hasattr(module, each) for each in ("num_experts", "is_transposed", "has_gate"))
    if not known or getattr(module, "has_post_expert_norm", False):
        raise ModelError(
            f"The experts of {type(model).__name__} cannot be taken apart.",
            f"{name} ({type(module).__name__}) computes them in another way.",
            "Choose another model. Weight statistics can be taken of any model.",
            field="model",
        )


def _view(fused: Any, part: str, number: int) -> nn.Linear:
    """A linear on the weights of one expert."""
    stored = fused.get_parameter(part).detach()[number]
    weight = stored.T if fused.is_transposed else stored
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if fused.has_bias:
        bias = fused.get_parameter(f"{part}_bias").detach()[number]
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


@contextmanager
def fused(model: PreTrainedModel) -> Iterator[None]:
    """Put the model's own modules of experts back, with the weights as they are now."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, ExpertList)}
    own: list[tuple[nn.Parameter, Tensor]] = []
    for name, module in lists.items():
        own += _gather(module)
        model.set_submodule(name, module.fused[0])
    try:
        yield
    finally:
        for parameter, data in own:
            parameter.data = data
        for name, module in lists.items():
            model.set_submodule(name, module)


def _gather(experts: ExpertList) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Copy weights that are no views any more (a trained layer's, say) into the parameter of all
    experts; yield it and its own data."""
    module = experts.fused[0]
    for part in (p for p in PARTS if p in module._parameters):
        parameter: nn.Parameter = module.get_parameter(part)
        weights = [expert.get_submodule(part).get_parameter("weight") for expert in experts]
        stored = [w.T if module.is_transposed else w for w in weights]
        pairs = zip(stored, parameter, strict=True)
        if any(one.data_ptr() != own.data_ptr() for one, own in pairs):
            yield parameter, parameter.data
            parameter.data = torch.stack([one.detach().to(parameter.dtype) for one in stored])
