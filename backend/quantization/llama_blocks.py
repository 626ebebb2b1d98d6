"""Which blocks the quantizers with `llama_only` know: those of LLaMA, and what is built like them,
so that neighbours take over what scales or turns inputs (see `bases`). Does not import torch.
"""

from collections.abc import Iterable

from backend.errors import ConfigError

READERS = {  # of the residual stream -> the norm before them
    **dict.fromkeys(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"
    ),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
PARTS = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})  # of a block
FAMILIES = ("Llama", "Mistral", "Qwen")  # how the names of their classes begin


def require_llama_blocks(
    method: str, of_class: str, modules: Iterable[str], parts: Iterable[str] = PARTS
) -> None:
    """Refuse blocks that are not built like LLaMA's.

    Args:
        of_class: the name of a class of the model, or of its norms.
        modules: the layers to quantize, by their names in the block.
        parts: what a block consists of, where it is known.

    Raises:
        ConfigError: names what is different.
    """
    strange = sorted({*modules} - {*READERS, *WRITERS}) or sorted({*parts} ^ PARTS)
    if not strange and of_class.startswith(FAMILIES):
        return
    raise ConfigError(
        f"{method} cannot be used on this model.",
        f"Its blocks are not built like those of LLaMA: {strange[0] if strange else of_class}.",
        "Remove it from the stages.",
        field="stages",
    )
