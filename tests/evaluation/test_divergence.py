"""Divergence compared with full distributions in float64, and samples with transformers."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from backend.decoding.benchmark import same_start
from backend.errors import ComputeError
from backend.evaluation import divergence as room
from backend.evaluation.divergence import DenseOutputs, Divergence, DivergenceObserver
from backend.evaluation.native_text import agreement, write_samples
from backend.evaluation.perplexity import perplexity
from backend.models.block_forward import NewBatches, batches_in
from backend.models.blocks import block_linears
from backend.reporter import SilentReporter
from backend.text.prompts import STORIES, benchmark_prompts
from tests.evaluation.conftest import CONFIGS, VOCABULARY, text_of


@pytest.fixture(params=[*CONFIGS])
def dense(request: pytest.FixtureRequest):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()


def pruned(dense, share: float = 0.4):
    """Copy of a model without the smallest weights of its blocks."""
    model = deepcopy(dense)
    for index in range(2):
        for linear in block_linears(model, index).values():
            W = linear.read()
            linear.write(W * (W.abs() >= W.abs().quantile(share)))
    return model


def compared(dense, other, rows: Tensor, batch: int, new: NewBatches = list) -> Divergence:
    text, reference = text_of(rows), DenseOutputs(new)
    with reference.recording(dense) as observe:
        perplexity(dense, text, batch, observe=observe)
    comparison = DivergenceObserver(other, reference)
    perplexity(other, text, batch, observe=comparison)
    return comparison.result()


@torch.no_grad()
def by_hand(dense, other, rows: Tensor) -> tuple[Tensor, Tensor]:
    """KL and agreement at every predicted position [n, L - 1], in double precision."""
    p, q = (m(input_ids=rows).logits[:, :-1].double().softmax(-1) for m in (dense, other))
    return (p * (p.log() - q.log())).sum(-1), (p.argmax(-1) == q.argmax(-1)).double()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_divergence_equals_its_definition(
    dense, rows: Tensor, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "POSITIONS", 7)  # does not divide 39
    other = pruned(dense)
    kl, same = by_hand(dense, other, rows)
    assert kl.mean() > 0.001 and 0 < same.mean() < 1  # otherwise nothing would be tested
    for new in (list, batches_in(tmp_path)):
        actual = compared(dense, other, rows, batch, new)
        assert actual.kl == pytest.approx(kl.mean().item(), rel=1e-4)
        assert actual.agreement == pytest.approx(same.mean().item(), abs=1e-12)
        assert actual.tokens == kl.numel()
        spread = (kl.mean(1).std() / 5**0.5).item()
        assert actual.kl_stderr == pytest.approx(spread, rel=1e-3)


def test_other_passes_and_a_broken_model_are_refused(dense, rows: Tensor) -> None:
    reference = DenseOutputs()
    with reference.recording(dense) as observe:
        perplexity(dense, text_of(rows), 2, observe=observe)
    with pytest.raises(ValueError, match="other batches"):
        perplexity(dense, text_of(rows), 5, observe=DivergenceObserver(dense, reference))
    comparison = DivergenceObserver(dense, reference)
    logits = torch.full((2, 40, VOCABULARY), torch.nan)
    comparison(rows[:2], logits)
    with pytest.raises(ComputeError, match="not finite"):
        comparison.result()


TOKENS = 12


def test_samples_equal_those_of_transformers(toy) -> None:
    prompts = benchmark_prompts(STORIES, 3)
    actual = write_samples(toy.model, toy.tokenizer, prompts, TOKENS, SilentReporter())
    assert [s.prompt for s in actual] == [p.text for p in prompts]
    for sample in actual:
        ids = toy.tokenizer(sample.prompt, return_tensors="pt").input_ids
        theirs = toy.model.generate(ids, max_new_tokens=TOKENS, do_sample=False, use_cache=True)
        written = theirs[0, ids.shape[1] :]
        assert sample.text == toy.tokenizer.decode(written, skip_special_tokens=True)
        assert 0 < len(sample.tokens) <= TOKENS


def test_an_end_of_text_ends_a_sample(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    (prompt,) = benchmark_prompts(STORIES, 1)
    (whole,) = write_samples(toy.model, toy.tokenizer, [prompt], TOKENS, SilentReporter())
    monkeypatch.setattr(toy.model.generation_config, "eos_token_id", whole.tokens[4])
    (cut,) = write_samples(toy.model, toy.tokenizer, [prompt], TOKENS, SilentReporter())
    assert cut.tokens == whole.tokens[: whole.tokens.index(whole.tokens[4])]


def test_agreement_counts_up_to_the_first_difference() -> None:
    assert agreement([[1, 2, 3, 4]], [[1, 2, 9, 4]]) == 0.5
    assert agreement([[1, 2]], [[1, 2, 3, 4]]) == 0.5  # one text is longer
    assert agreement([[1], [1, 2]], [[1], [3, 2]]) == 0.5
    assert agreement([[]], [[]]) == 1.0 and agreement([[]], [[1]]) == 0.0


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_agreement_equals_its_definition(a: list[int], b: list[int]) -> None:
    n = same_start(a, b)
    assert a[:n] == b[:n] and a[n : n + 1] + b[n : n + 1] != (a[n : n + 1] or [None]) * 2
    assert 0.0 <= agreement([a], [b]) <= 1.0
    assert (agreement([a], [b]) == 1.0) == (a == b)
