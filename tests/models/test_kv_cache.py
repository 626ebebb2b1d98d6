"""The preallocated cache and attention over it: what transformers computes, without its copies."""

from itertools import islice

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from backend.errors import ModelError
from backend.models import kv_cache
from backend.models.kv_cache import (
    GROUPED,
    PreallocatedCache,
    cache_name,
    greedy,
    grouped_attention,
    sliding_window,
    use_grouped,
)
from backend.models.loading import load
from tests.drafters.toys import ARCHITECTURES, built

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.inference_mode()
def logits(model: PreTrainedModel, cache: PreallocatedCache, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=True, **{cache_name(model): cache}).logits


def ids(count: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(3, 60, (rows, count), generator=torch.Generator().manual_seed(count))


def test_reading_in_parts_gives_what_reading_at_once_gives() -> None:
    model, tokens = load("toy").model, ids(20)
    cache = PreallocatedCache(len(model.model.layers), 24)
    parts = [logits(model, cache, part) for part in tokens.split([7, 1, 9, 3], 1)]
    whole = model(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    assert cache.length == cache.get_seq_length() == 20


def test_rows_that_are_kept_move_in_place() -> None:
    cache = PreallocatedCache(1, 8)
    rows = torch.arange(6.0).view(1, 1, 6, 1)
    cache.update(rows, -rows, 0)
    memory = cache.rows[0].keys.data_ptr()
    cache.keep(2, [0, 2, 3])
    assert cache.length == 5 and cache.rows[0].keys.data_ptr() == memory
    keys, values = cache.update(torch.full((1, 1, 1, 1), 9.0), torch.full((1, 1, 1, 1), 7.0), 0)
    assert keys.flatten().tolist() == [0, 1, 2, 4, 5, 9]
    assert values.flatten().tolist() == [0, -1, -2, -4, -5, 7]


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (LlamaConfig(**SIZES, intermediate_size=16), None),
        (MistralConfig(**SIZES, intermediate_size=16, num_key_value_heads=1, sliding_window=9), 9),
    ],
    ids=["full", "sliding"],
)
def test_the_window_is_known(config: PretrainedConfig, window: int | None) -> None:
    assert sliding_window(random_model(config)) == window


def test_a_cache_without_rows_of_tokens_is_refused() -> None:
    model = random_model(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2))
    with pytest.raises(ModelError, match="does not support selecting rows") as refused:
        sliding_window(model)
    assert refused.value.field == "model" and "attention to tokens" in refused.value.do


def test_it_writes_what_generate_writes() -> None:
    model = load("toy").model
    prompt = [5, 17, 40, 9]
    given = torch.tensor([prompt])
    expected = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=25,
        eos_token_id=None,
    )[0, len(prompt) :]
    assert list(islice(greedy(model, prompt), 25)) == expected.tolist()


# attention ----------------------------------------------------------------------------------------


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
