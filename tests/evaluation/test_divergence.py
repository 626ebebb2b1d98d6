"""Divergence compared with full distributions in float64, samples with transformers, and the native
decoder with PyTorch in float32."""

from copy import deepcopy
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backend.compiler import CompilerError
from backend.decoding.benchmark import same_start
from backend.errors import CancelledError, ComputeError
from backend.evaluation import divergence, native_text
from backend.evaluation.divergence import DenseOutputs, Divergence, DivergenceObserver
from backend.evaluation.native_text import (
    NativeText,
    agreement,
    greedy_tokens,
    text_model,
    write_samples,
)
from backend.evaluation.perplexity import perplexity, window_nlls
from backend.kernels.speeds import SpeedComparison
from backend.models.block_forward import NewBatches, batches_in
from backend.models.blocks import block_linears
from backend.reporter import SilentReporter
from backend.text.prompts import STORIES, benchmark_prompts
from tests.evaluation.conftest import CONFIGS, VOCABULARY, Impatient, built, text_of


@pytest.fixture(params=[*CONFIGS])
def dense(request: pytest.FixtureRequest):
    return built(request.param)


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
    monkeypatch.setattr(divergence, "POSITIONS", 7)  # does not divide 39
    other = pruned(dense)
    kl, same = by_hand(dense, other, rows)
    assert kl.mean() > 0.001 and 0 < same.mean() < 1  # otherwise nothing would be tested
    for new in (list, batches_in(tmp_path)):
        actual = compared(dense, other, rows, batch, new)
        assert actual.kl == pytest.approx(kl.mean().item(), rel=1e-4)
        assert actual.agreement == pytest.approx(same.mean().item(), abs=1e-12)
        assert actual.tokens == kl.numel()
        assert actual.kl_stderr == pytest.approx((kl.mean(1).std() / 5**0.5).item(), rel=1e-3)


def test_other_passes_and_a_broken_model_are_refused(dense, rows: Tensor) -> None:
    reference = DenseOutputs()
    with reference.recording(dense) as observe:
        perplexity(dense, text_of(rows), 2, observe=observe)
    with pytest.raises(ValueError, match="other batches"):
        perplexity(dense, text_of(rows), 5, observe=DivergenceObserver(dense, reference))
    comparison = DivergenceObserver(dense, reference)
    comparison(rows[:2], torch.full((2, 40, VOCABULARY), torch.nan))
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


def reading(model, length: int = 40) -> NativeText:
    actual, how = text_model(model, "auto", length)
    assert isinstance(actual, NativeText) and how.startswith("native, bfloat16")
    return actual


def losses(model, rows: Tensor) -> Tensor:
    return window_nlls(model, rows, 2, SilentReporter())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_losses_and_divergence_equal_those_of_pytorch(
    family: str, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_text, "CHUNK_TOKENS", 16)  # several passes, the last one shorter
    dense = built(family)
    other = pruned(dense)
    assert (losses(reading(other), rows) - losses(other, rows)).abs().max() < 0.05
    kl, same = by_hand(dense, other, rows)
    actual = compared(reading(dense), reading(other), rows, 2)
    assert actual.kl == pytest.approx(kl.mean().item(), rel=0.03)
    assert actual.agreement == pytest.approx(same.mean().item(), abs=0.05)
    assert compared(reading(dense), reading(dense), rows, 2).kl == pytest.approx(0, abs=1e-6)


def test_the_native_model_has_the_current_weights(rows: Tensor) -> None:
    model = built("llama")
    dense = losses(reading(model), rows)
    for linear in block_linears(model, 0).values():
        linear.write(linear.read() * 0)
    assert (losses(reading(model), rows) - losses(model, rows)).abs().max() < 0.05
    assert (losses(reading(model), rows) - dense).abs().max() > 0.1


@torch.no_grad()
def test_greedy_tokens_of_several_texts() -> None:
    model, prompts = built("llama"), [[5, 9, 2], [7], [8, 8]]
    alone = [[*greedy_tokens(reading(model), [prompt], (), 9)] for prompt in prompts]
    texts = [[token for _, token in each] for each in alone]
    for prompt, text in zip(prompts, texts, strict=True):
        logits = model(input_ids=torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(text)[:, None])[:, 0]
        # Rounding may select another token among near ties.
        assert len(text) == 9 and (logits.amax(1) - chosen).max() < 0.5
    ends = {texts[1][4]}
    expected_texts = [[*takewhile(lambda token: token not in ends, text)] for text in texts]
    together = [*greedy_tokens(reading(model), prompts, ends, 9)]
    assert [[x for n, x in together if n == k] for k in range(3)] == expected_texts
    assert [n for n, _ in together[:3]] == [0, 1, 2] or not all(expected_texts)


def test_a_request_to_stop_is_obeyed_between_windows(rows: Tensor) -> None:
    observed: list[Tensor] = []
    model = reading(built("llama"))
    with pytest.raises(CancelledError):
        perplexity(model, text_of(rows), 4, Impatient(2), observe=lambda x, _: observed.append(x))
    assert len(observed) == 2


def test_outputs_of_another_decoder_are_not_compared(rows: Tensor) -> None:
    model, reference = built("llama"), DenseOutputs()
    reader = reading(model)
    with reference.recording(reader) as observe:
        perplexity(reader, text_of(rows), 1, observe=observe)
    with pytest.raises(ValueError, match="another decoder"):
        perplexity(model, text_of(rows), 1, observe=DivergenceObserver(model, reference))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_pytorch_reads_unsupported_models_and_names_the_reason(family: str) -> None:
    model = built(family)
    assert text_model(model, "float32", 40) == (model, "PyTorch, float32")
    actual, how = text_model(model, "auto", 40)
    assert actual is model and f"not {model.config.model_type}" in how


@pytest.fixture(autouse=True)
def kernels_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds that do not depend on the load of this machine."""
    choice = SpeedComparison(work="texts", seconds={"kernels": 1, "PyTorch": 3})
    monkeypatch.setattr(native_text, "reading_choice", lambda _: choice)


def test_the_faster_decoder_reads_and_the_log_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama")
    actual, how = text_model(model, "auto", 40)
    assert isinstance(actual, NativeText) and "kernels (PyTorch: 3.00 × the time)" in how
    slower = SpeedComparison(work="texts", seconds={"kernels": 2, "PyTorch": 1})
    monkeypatch.setattr(native_text, "reading_choice", lambda _: slower)
    actual, how = text_model(model, "auto", 40)
    assert actual is model and "PyTorch (kernels: 2.00 × the time)" in how


def test_pytorch_reads_if_the_decoder_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama")
    for name, value, cause in (
        ("memory_available", lambda: 1000, "memory"),
        ("is_streamed", lambda _: True, "streamed from disk"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(native_text, name, value)
            actual, how = text_model(model, "auto", 40)
        assert actual is model and cause in how

    def fail(*_: object, **__: object) -> None:
        raise CompilerError("The native decoder cannot be built.", "No compiler.", "Install one.")

    monkeypatch.setattr(native_text, "NativeModel", fail)
    actual, how = text_model(model, "auto", 40)
    assert actual is model and "cannot be built" in how
