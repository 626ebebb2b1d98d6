"""Attention of a few tokens over a cache: what transformers computes, without its copies."""

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from backend.models import kv_cache
from backend.models.kv_cache import GROUPED, grouped_attention, use_grouped
from tests.drafters.toys import ARCHITECTURES, built


class Layer(nn.Module):
    """What transformers asks of an attention layer."""

    is_causal = True

    def __init__(self, shared: int) -> None:
        super().__init__()
        self.num_key_value_groups = shared


def tensors(heads: int, shared: int, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(n + m)
    shapes = [(2, heads * shared, n, 8), (2, heads, m, 8), (2, heads, m, 8)]
    query, key, value = (torch.randn(*shape, generator=random) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize(("heads", "shared"), [(3, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("n", [1, 5, 80])
@pytest.mark.parametrize("kind", ["float", "bool", "none"])
def test_it_is_what_transformers_computes(heads: int, shared: int, n: int, kind: str) -> None:
    given, layer = tensors(heads, shared, n, 90), Layer(shared)
    seen = torch.rand(2, 1, n, 90, generator=torch.Generator().manual_seed(1)) < 0.7
    seen[..., 0] = True
    lowest = torch.finfo(torch.float32).min
    mask = {"bool": seen, "none": None, "float": torch.zeros(seen.shape).masked_fill(~seen, lowest)}
    found, _ = grouped_attention(layer, *given, mask[kind], scaling=0.3)
    expected, _ = sdpa_attention_forward(layer, *given, mask[kind], scaling=0.3)
    torch.testing.assert_close(found, expected)


def test_keys_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens never reach the attention of transformers; many do, and what it alone knows."""
    called: list[int] = []

    def usual(module: nn.Module, query: Tensor, *given: object, **more: object) -> tuple:
        called.append(query.shape[2])
        return query.transpose(1, 2), None

    monkeypatch.setattr(kv_cache, "sdpa_attention_forward", usual)
    for n in (1, 8, 64, 65):
        grouped_attention(Layer(3), *tensors(2, 3, n, 70), torch.zeros(2, 1, n, 70))
    grouped_attention(Layer(3), *tensors(2, 3, 4, 70), torch.zeros(2, 1, 4, 70), softcap=30.0)
    assert called == [65, 4]


@torch.inference_mode()
def test_a_model_that_uses_it_computes_the_same() -> None:
    model, ids = built(ARCHITECTURES["grouped"]), some_ids(20)
    before = model(input_ids=ids).logits
    use_grouped(model, model.device)
    assert model.config._attn_implementation == GROUPED
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    eager = built(ARCHITECTURES["grouped"])
    eager.set_attn_implementation("eager")
    use_grouped(eager, eager.device)
    assert eager.config._attn_implementation == "eager"  # chosen by somebody


def some_ids(length: int) -> Tensor:
    return torch.randint(3, 128, (1, length), generator=torch.Generator().manual_seed(0))
