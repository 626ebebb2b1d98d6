"""A drafter on the native kernels drafts what it drafts in PyTorch."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from backend.decoding.acceptance import top_k
from backend.decoding.draft_tree import Tree
from backend.decoding.native.weights import NativeLinear
from backend.decoding.target_model import TargetModel
from backend.drafters.adaptation import NativeLayer
from backend.drafters.adapted import collect_states
from backend.drafters.config import ARMS, DrafterConfig
from backend.drafters.generate import TreeProposer
from backend.drafters.registry import build_drafter
from backend.quantization.packed_linear import PackedLinear
from tests.decoding.native.test_decoder import distance
from tests.kernels.sets import VARIANTS, kernel_set

CONFIG = LlamaConfig(
    vocab_size=203,
    hidden_size=64,
    num_hidden_layers=3,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
TREE = Tree([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1)])


def opened() -> TargetModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    return TargetModel(model.to(torch.bfloat16))


@pytest.mark.parametrize("arm", ["Amphista", "Medusa", "EAGLE", "Hydra"])
@torch.inference_mode()
def test_its_drafts_are_those_of_its_weights(arm: str) -> None:
    target = opened()
    assert target.native
    ids = torch.randint(203, (60,), generator=torch.manual_seed(1))
    whole = build_drafter(DrafterConfig(**ARMS[arm]), target, torch.arange(203)).eval()
    whole.initialize(target, [ids])
    for parameter in whole.parameters():
        parameter.add_(0.1 * parameter.std().nan_to_num() * torch.randn_like(parameter))
    native = deepcopy(whole)
    assert native.quantize(target)
    kinds = {type(part) for part in native.modules()}
    assert NativeLinear in kinds and not kinds & {nn.Linear, PackedLinear}
    assert (NativeLayer in kinds) == (arm != "Medusa")
    hidden, alike, count = target.hidden(ids[None])[0].float(), 0, 0
    proposers = [TreeProposer(each, target, TREE) for each in (whole, native)]
    for each in proposers:
        each.start(int(ids[0]), 80)
    for start, end in ((0, 20), (20, 21), (21, 24), *((n, n + 1) for n in range(24, 59))):
        one, other = (
            each.propose(hidden[start:end], ids[start + 1 : end + 1].tolist()).tokens
            for each in proposers
        )
        alike += sum(a == b for a, b in zip(one, other, strict=True))
        count += len(one)
    assert alike > 0.9 * count  # rounded to 8 bits


@pytest.mark.parametrize("block", [0, 1, 2, None])
@torch.inference_mode()
def test_the_states_it_starts_from_are_those_of_pytorch(block: int | None) -> None:
    target, texts = opened(), [torch.arange(3, 73), torch.arange(90, 130)]
    assert target.native
    found = collect_states(target, texts, block)
    target.native = None
    expected = collect_states(target, texts, block)
    for states, others in zip(found, expected, strict=True):  # hidden, embedded, stream
        assert distance(states, others) < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_likeliest_are_those_of_topk(variant: str) -> None:
    torch.manual_seed(0)
    for rows, columns, ranks in ((1, 5, 5), (3, 75, 8), (4, 1024, 1), (2, 4096, 10)):
        logits = 5 * torch.randn(rows, columns)
        values, places = top_k(logits, ranks, kernel_set(variant))
        best = logits.log_softmax(-1).topk(ranks)
        torch.testing.assert_close(values, best.values, rtol=1e-4, atol=1e-4)
        assert places.tolist() == best.indices.tolist()
    assert top_k(torch.zeros(1, 40), 3, kernel_set(variant))[1].tolist() == [[0, 1, 2]]
    few = torch.full((2, 40), -torch.inf)
    few[0, 7], few[1] = 1.0, torch.nan
    values, places = top_k(few, 3, kernel_set(variant))
    assert places.tolist() == [[7, 0, 0], [0, 0, 0]]  # places of the row, whatever is in it
    assert values[0].tolist() == [0.0, -torch.inf, -torch.inf] and values[1].isnan().all()
