"""Calibration text that the model generates."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
)

from backend.errors import CancelledError, ComputeError
from backend.reporter import SilentReporter
from backend.text import slices
from backend.text.slices import evaluation_slice, require_disjoint, sample, sample_slice
from tests.toy_layers import Recorder

CONFIGS = [
    LlamaConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=0,
    ),
    GPT2Config(vocab_size=512, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    OPTConfig(
        vocab_size=512,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=64,
        pad_token_id=1,
    ),
]


@torch.no_grad()
def slow_sample(
    model: PreTrainedModel, rows: torch.Tensor, context: int, seed: int
) -> torch.Tensor:
    """The obvious way: the whole prefix again for every token, no cache."""
    generator = torch.Generator().manual_seed(seed)
    while rows.shape[1] < context:
        logits = model(input_ids=rows, use_cache=False).logits[:, -1]
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        rows = torch.cat((rows, drawn), 1)
    return rows


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_the_cache_changes_nothing(config, tokenizer) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.update(top_k=1, temperature=0.1, eos_token_id=0)  # must not be heard
    expected = slow_sample(model, torch.zeros(3, 1, dtype=torch.long), 20, seed=5)
    assert torch.equal(sample(model, tokenizer, 3, 20, 5, SilentReporter()), expected)


def test_seeds_and_batches(model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "BATCH", 2)
    state = torch.random.get_rng_state()
    first, again, other = (
        sample(model, tokenizer, 5, 24, seed, SilentReporter()) for seed in (0, 0, 1)
    )
    assert first.shape == (5, 24) and first.dtype == torch.int64
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) == 5
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_slice_of_generated_text(model, tokenizer) -> None:
    reporter = Recorder()
    found = sample_slice(model, tokenizer, 16, 128, 0, reporter)
    assert (found.corpus, found.role, found.bos) == ("self", "calibration", True)
    assert (found.input_ids[:, 0] == tokenizer.bos_token_id).all()
    text = tokenizer.decode(found.input_ids.flatten())
    assert " the " in text and "One day" in text  # it writes stories, and goes on after their end
    assert (found.input_ids[:, 1:] == tokenizer.eos_token_id).any()
    require_disjoint(found, evaluation_slice("toystories", tokenizer, 16, 128))
    done = [done for done, _, _ in reporter.progressed]
    assert done == sorted(done) and reporter.progressed[-1][:2] == (16 * 128, 16 * 128)


def test_a_stop_is_honored_within_a_token(model, tokenizer) -> None:
    reporter = Recorder(stop=lambda told: len(told.progressed) >= 3)
    with pytest.raises(CancelledError):
        sample(model, tokenizer, 2, 64, 0, reporter)
    assert len(reporter.progressed) == 3


def test_a_broken_model_is_reported(tokenizer) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS[0]).eval()
    model.lm_head.weight.data[:] = torch.inf
    with pytest.raises(ComputeError, match="not finite"):
        sample(model, tokenizer, 1, 8, 0, SilentReporter())
