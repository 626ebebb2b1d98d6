"""Native decoder compared with PyTorch in float32."""

from itertools import takewhile

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from backend.compiler import CompilerError
from backend.errors import CancelledError
from backend.evaluation import native_text as room
from backend.evaluation.divergence import DenseOutputs, DivergenceObserver
from backend.evaluation.native_text import NativeText, greedy_tokens, text_model
from backend.evaluation.perplexity import perplexity, window_nlls
from backend.kernels.speeds import SpeedComparison
from backend.models.blocks import block_linears
from backend.reporter import SilentReporter
from tests.evaluation.conftest import CONFIGS, Impatient, text_of
from tests.evaluation.test_divergence import by_hand, compared, pruned


def built(family: str):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(CONFIGS[family]).eval()


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
    monkeypatch.setattr(room, "CHUNK_TOKENS", 16)  # several passes, the last one shorter
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
    monkeypatch.setattr(room, "reading_choice", lambda _: choice)


def test_the_faster_decoder_reads_and_the_log_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama")
    actual, how = text_model(model, "auto", 40)
    assert isinstance(actual, NativeText) and "kernels (PyTorch: 3.00 × the time)" in how
    slower = SpeedComparison(work="texts", seconds={"kernels": 2, "PyTorch": 1})
    monkeypatch.setattr(room, "reading_choice", lambda _: slower)
    actual, how = text_model(model, "auto", 40)
    assert actual is model and "PyTorch (kernels: 2.00 × the time)" in how


def test_pytorch_reads_if_the_decoder_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama")
    for name, value, cause in (
        ("memory_available", lambda: 1000, "memory"),
        ("is_streamed", lambda _: True, "streamed from disk"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(room, name, value)
            actual, how = text_model(model, "auto", 40)
        assert actual is model and cause in how

    def fail(*_: object, **__: object) -> None:
        raise CompilerError("The native decoder cannot be built.", "No compiler.", "Install one.")

    monkeypatch.setattr(room, "NativeModel", fail)
    actual, how = text_model(model, "auto", 40)
    assert actual is model and "cannot be built" in how
