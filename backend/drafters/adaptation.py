"""Cloned decoder layers of the target model.

A transformers layer needs masks and position embeddings from its model, so a clone is a model of
the same class with a single layer, without embedding and final norm. Its forward prepares
everything.

With `use_native`, the parts of a drafter run on the kernels of `backend.decoding.native` in 8 bits.
In PyTorch its many small products would spend most of their time in dispatch. A sequential drafter
for SmolLM2-135M has 1.59 accepted tokens per pass in 8 bits and in float32, but 1.50 in 4 bits.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, PreTrainedModel

from backend.decoding.native.blocks import NativeBlocks
from backend.decoding.native.cache import NativeCache
from backend.decoding.native.families import LANES
from backend.decoding.native.weights import NativeLinear
from backend.decoding.target_model import TargetModel, packed_weights
from backend.errors import ModelError
from backend.models.blocks import decoder_blocks
from backend.models.families.experts import ExpertList, split_experts
from backend.models.kv_cache import (
    DEFAULT_ATTENTION,
    GROUPED,
    PreallocatedCache,
    cache_name,
    use_grouped,
)
from backend.models.sources.headers import alone

FIRST_EXPERTS = ("first_k_dense_replace", "moe_layer_start_index")  # earlier layers are dense


class ClonedLayer(nn.Module):
    """Copy of decoder layer `block` of `model`: hidden states [b, n, d] -> [b, n, d], causal.

    Its dtype is fixed at construction, because casting later would round the rotary frequencies.

    Raises:
        ModelError: the architecture cannot be built with one layer.
    """

    def __init__(self, model: PreTrainedModel, block: int, dtype: torch.dtype) -> None:
        super().__init__()
        try:
            shell = _shell(model, block, dtype)
            original = decoder_blocks(model)[block]
            if any(isinstance(module, ExpertList) for module in original.modules()):
                split_experts(shell)
            self.block = decoder_blocks(shell)[0]
            self.block.load_state_dict(original.state_dict() | packed_weights(original))
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
            raise ModelError(
                f"A decoder layer of {type(model).__name__} cannot be cloned.",
                f"{type(error).__name__}: {error}."[:300],
                "Choose the architecture medusa.",
                field="architecture",
            ) from error
        use_grouped(shell, model.device)
        nn.Module.to(shell, model.device)
        self._shell = (shell,)  # a tuple, so that only the layer's parameters are registered
        self._cache = cache_name(shell)

    def new_cache(self, capacity: int) -> PreallocatedCache:
        """Create a cache for `capacity` positions."""
        return PreallocatedCache(1, capacity)

    def forward(
        self,
        states: Tensor,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Run the layer and append to the cache.

        Args:
            states: [b, n, d].
            positions: [b, n]; None for the positions after the cached ones.
            visible: attention mask [b, n, cached + n] bool; None for causal attention.
        """
        options: dict[str, Any] = {self._cache: cache, "use_cache": cache is not None}
        if visible is not None:
            # additive mask [b, 1, n, m] in the dtype of the attention: 0 or the lowest number
            device = states.device.type
            cast = torch.is_autocast_enabled(device)
            dtype = torch.get_autocast_dtype(device) if cast else states.dtype
            mask = torch.zeros(visible.shape, dtype=dtype, device=states.device)
            options |= {
                "position_ids": positions,
                "attention_mask": mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None],
            }
        output = self._shell[0](inputs_embeds=states, **options)
        outputs: Tensor = output.last_hidden_state
        return outputs


@alone
def _shell(model: PreTrainedModel, block: int, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model of the same class with only layer `block`. All other parts are identities."""
    config: Any = deepcopy(model.config.get_text_config())
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, 8, None
    for key in FIRST_EXPERTS:  # the layer of the shell has experts if layer `block` has
        if getattr(config, key, block + 1) <= block:
            setattr(config, key, 0)
    if types := getattr(config, "layer_types", None):
        config.layer_types = [types[block]]
    kernel = model.config._attn_implementation.replace(GROUPED, DEFAULT_ATTENTION)
    shell: PreTrainedModel = AutoModel.from_config(config, dtype=dtype, attn_implementation=kernel)
    for parameter in shell.parameters():
        parameter.data.zero_()  # the inputs of the layer already contain position embeddings
    name, _ = final_norm(model)
    if name:
        parent, _, child = name.rpartition(".")
        setattr(shell.get_submodule(parent), child, nn.Identity())
    shell.set_input_embeddings(nn.Identity())
    return shell.requires_grad_(False).eval()


def final_norm(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """Return the name and the module of the base model's final norm, whose output is the last
    hidden state; "" and an identity if there is none."""
    outputs: dict[str, Tensor] = {}
    base, blocks = model.base_model, decoder_blocks(model)
    inside = {id(module) for module in blocks.modules()}

    def record_output(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            outputs[name] = output

        return module.register_forward_hook(hook)

    outside = [(name, m) for name, m in base.named_modules() if name and id(m) not in inside]
    hooks = [record_output(name, module) for name, module in outside]
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            last = base(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    for name, output in outputs.items():  # compares memory, because some models reshape the output
        if isinstance(output, Tensor) and output.data_ptr() == last.data_ptr():
            return name, base.get_submodule(name)
    return "", nn.Identity()


class NativeLayer(nn.Module):
    """Cloned layer in the native decoder: hidden states [1, n, d] -> [1, n, d] in float32,
    causal."""

    def __init__(self, layer: ClonedLayer, target: TargetModel) -> None:
        super().__init__()
        self._blocks = NativeBlocks(target.model, [layer.block], rounded=True)

    def new_cache(self, capacity: int) -> NativeCache:
        """Create a cache for `capacity` positions."""
        return self._blocks.new_cache(capacity)

    def forward(
        self,
        states: Tensor,
        cache: NativeCache | None = None,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Run the layer and append to the cache; see `ClonedLayer.forward`. All cached rows are
        visible."""
        n = states.shape[1]
        row_positions = None if positions is None else positions[0]
        mask = None if visible is None else visible[0, :, -n:]
        return self._blocks(states[0], cache or self.new_cache(n), row_positions, mask)[None]


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Create a linear layer from weights [out, in]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer


def use_native(module: nn.Module, target: TargetModel) -> None:
    """Replace every cloned layer and linear of `module` with native ones. Other parts compute in
    float32."""
    for name, part in list(module.named_modules()):
        if isinstance(part, ClonedLayer):
            module.set_submodule(name, NativeLayer(part, target))
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear) and not part.in_features % LANES:
            module.set_submodule(name, NativeLinear(part, rounded=True))
    module.float()
