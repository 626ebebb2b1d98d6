"""Training rows of text and instructions; calibration text that the model generates."""

from pathlib import Path
from random import Random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
)

from backend.errors import CancelledError, ComputeError, DatasetError
from backend.reporter import SilentReporter
from backend.text import slices
from backend.text.slices import evaluation_slice, require_disjoint, sample, sample_slice
from backend.text.training import IGNORED_LABEL, _packed, training_set
from tests.text.conftest import write
from tests.toy_layers import Recorder

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant] "
)


def pairs(count: int, asked: str = "instruction", answered: str = "output") -> list[dict]:
    return [{asked: f"Tell of dog {n}.", answered: f"The dog {n} ran home."} for n in range(count)]


def answers(found, tokenizer) -> str:
    """The text of all judged tokens."""
    return tokenizer.decode(found.labels[found.labels != IGNORED_LABEL], skip_special_tokens=False)


def test_every_token_of_plain_text_has_a_label(tokenizer) -> None:
    found = training_set("toystories", tokenizer, 6, 64, seed=1)
    assert found.form == "text" and found.text.input_ids.shape == (6, 64)
    assert torch.equal(found.labels, found.text.input_ids)
    require_disjoint(found.text, evaluation_slice("toystories", tokenizer, 8, 64))


def test_a_seed_gives_the_same_rows(tokenizer, text_dir: Path) -> None:
    for corpus in ("toystories", write(text_dir, "asked.jsonl", pairs(60))):
        first, again, other = (training_set(corpus, tokenizer, 4, 48, s) for s in (0, 0, 1))
        assert first.text.sha256 == again.text.sha256 != other.text.sha256
        assert torch.equal(first.labels, again.labels)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("instruction", "output"),
        ("prompt", "response"),
        ("prompt", "completion"),
        ("question", "answer"),
    ],
)
def test_only_answers_have_labels(tokenizer, text_dir: Path, asked: str, answered: str) -> None:
    corpus = write(text_dir, "asked.jsonl", pairs(12, asked, answered))
    found = training_set(corpus, tokenizer, 100, 64, seed=0)
    assert found.form == "instructions"
    judged, whole = answers(found, tokenizer), tokenizer.batch_decode(found.text.input_ids)
    assert all(f"The dog {n} ran home." in judged for n in range(12))
    assert "Tell of" not in judged and any("Tell of dog" in row for row in whole)
    same = found.labels == found.text.input_ids
    assert torch.equal(same, found.labels != IGNORED_LABEL)


def test_a_chat_template_renders_the_prompt(tokenizer, text_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    found = training_set(write(text_dir, "asked.jsonl", pairs(1)), tokenizer, 1, 96, seed=0)
    assert "[user] Tell of dog 0. [assistant]" in tokenizer.decode(found.text.input_ids[0])
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hi."},
    ]
    with pytest.raises(DatasetError, match="chat template") as refused:
        training_set(
            write(text_dir, "asked.jsonl", [{"messages": messages}]), tokenizer, 1, 96, seed=0
        )
    assert refused.value.field == "training_text"


def test_examples_are_packed_and_none_is_lost_or_split() -> None:
    class Plain:
        eos_token_id, pad_token_id = 0, None

    random = Random(0)
    lengths = [random.randint(1, 20) for _ in range(50)]
    examples = [([n + 1] * k, [IGNORED_LABEL] * (k - 1) + [n + 1]) for n, k in enumerate(lengths)]
    rows = list(_packed(iter(examples), Plain(), 24))
    assert all(len(ids) == len(labels) == 24 for ids, labels in rows)
    found = [token for ids, _ in rows for token in ids if token]
    assert found == [token for ids, _ in examples for token in ids]
    for n, k in enumerate(lengths):  # whole, in one row
        assert sum(ids.count(n + 1) == k for ids, _ in rows) == 1
    assert sum(label != IGNORED_LABEL for _, labels in rows for label in labels) == 50


def test_long_examples_are_truncated_and_examples_without_an_answer_skipped(
    tokenizer, text_dir: Path
) -> None:
    lines = [
        {"instruction": "Go on.", "output": "A dog ran. " * 50},
        {"instruction": "A dog ran. " * 50, "output": "Yes."},
    ]
    found = training_set(write(text_dir, "asked.jsonl", lines), tokenizer, 10, 64, seed=0)
    assert len(found.labels) == 1 and (found.labels != IGNORED_LABEL).sum() > 20


def test_an_error_for_a_short_text_states_its_length(tokenizer, text_dir: Path) -> None:
    with pytest.raises(DatasetError, match=r"yields 2 rows of 96 tokens; 4 are needed") as refused:
        training_set(
            write(text_dir, "asked.jsonl", pairs(2)), tokenizer, 10, 96, seed=0, min_rows=4
        )
    assert refused.value.field == "training_text"
    corpus = write(text_dir, "short.jsonl", ["short"])
    with pytest.raises(DatasetError, match="yields 0 rows"):
        training_set(corpus, tokenizer, 10, 96, seed=0)


# sampling -----------------------------------------------------------------------------------------


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
