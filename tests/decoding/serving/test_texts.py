"""The text of a request is the same in any batch and with any drafts."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import pytest
import torch
from torch import Tensor

from backend.decoding.acceptance import Sampling
from backend.decoding.cost_model import CostModel
from backend.decoding.draft_tree import DraftTokens, Tree, chain
from backend.decoding.native.model import NativeModel, Segment
from backend.decoding.serving.engine import ServingEngine
from backend.decoding.serving.request import GenerationRequest
from backend.decoding.serving.speculation import SequenceDrafter, Speculation
from backend.drafters.generate import TreeProposer
from tests.conftest import ALL
from tests.decoding.native.test_decoder import FAMILIES, built, tokens
from tests.decoding.serving.conftest import MODELS, alone, ask, prompt_of, target_of
from tests.drafters.toys import drafter_of
from tests.kernels.sets import VARIANTS, kernel_set

TREE = Tree([(0,), (1,), (0, 0), (1, 0), (1, 1), (1, 0, 0)])
SAMPLINGS = (
    Sampling(),
    Sampling(0.9, seed=1),
    Sampling(1.0, top_k=20, top_p=0.8, repetition_penalty=1.3, seed=2),
    Sampling(repetition_penalty=1.2),
)


class SecondBranchProposer:
    """Proposer whose second branch is right; it needs the states of all tokens."""

    nodes = len(TREE)

    def __init__(self, text: Sequence[int]) -> None:
        self._text = text

    def start(self, first: int, capacity: int) -> None:
        self._seen = 1

    def propose(self, hidden: Tensor, tokens: Sequence[int]) -> DraftTokens:
        assert len(hidden) == len(tokens) and [*self._text[self._seen :][: len(tokens)]] == tokens
        self._seen += len(tokens)
        a, b, c = [*self._text[self._seen : self._seen + 3], 5, 6, 7][:3]
        return DraftTokens([(a + 1) % 200, a, 7, b, (b + 3) % 200, c], TREE)


@pytest.mark.parametrize("name", ["toy", *MODELS])
@pytest.mark.parametrize("count", [1, 2, 7, 32] if ALL else [7])
def test_texts_do_not_depend_on_the_batch(
    opened: Callable[..., ServingEngine], monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    """Prompts of many lengths with all sampling settings, drafters and lookup; some requests join
    later or are cancelled. Greedy ones are observed."""
    chance, target, engine = Random(count), target_of(name), opened(name)
    monkeypatch.setattr(Speculation, "pays_off", lambda *_: chance.random() < 0.8)
    drafter = drafter_of(target, scale=0.3, heads=3) if "PyTorch" not in name else None
    texts, answers, likeliest = [], [], defaultdict[int, dict[int, int]](dict)

    def observe(n: int, start: int, hidden: Tensor, logits: Tensor) -> None:
        before = len(hidden) - len(logits)
        likeliest[n].update(enumerate(logits.argmax(-1).tolist(), start + before))

    for n in range(count):
        prompt = prompt_of(chance.choice([1, 2, 15, 16, 17, 40, 70]), n % 5)
        sampling, limit = SAMPLINGS[n % len(SAMPLINGS)], chance.choice([1, 5, 30])
        texts.append([*prompt, *alone(target, prompt, limit, sampling)])
        kinds = [
            None,
            SecondBranchProposer(texts[-1]),
            drafter and TreeProposer(drafter, target, TREE),
        ]
        answers.append(
            ask(
                engine,
                prompt,
                limit,
                sampling=sampling,
                drafter=kinds[n % 3],
                lookup=n % 4 < 2,
                echo=n % 5 == 0,
                person=str(n % 3),
                logprobs=n % 6 or None,
                observe=None if n % len(SAMPLINGS) else partial(observe, n),
            )
        )
        leaves = ask(engine, prompt, 40)
        if chance.random() < 0.7:
            (answers[-1] if chance.random() < 0.5 else leaves).wait()
        leaves.ticket.cancel()
    for n, (answer, text) in enumerate(zip(answers, texts, strict=True)):
        answer.wait()
        assert (answer.end.reason, answer.end.error) == ("length", None)
        prompt = answer.end.prompt_tokens
        assert answer.tokens == text[0 if n % 5 == 0 else prompt :]
        if observed := likeliest[n]:
            new = len(text) - prompt  # a draft may continue after the end
            assert [*observed] == [*range(min(observed), max(observed) + 1)]
            assert [observed[prompt - 1 + place] for place in range(new)] == text[prompt:]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.inference_mode()
def test_rows_of_a_pass_do_not_depend_on_each_other(variant: str, name: str) -> None:
    """Bit for bit, for a token, a tree and parts of prompts with different logits."""
    model = built(FAMILIES[name])
    native, ids = NativeModel(model, kernel_set(variant)), tokens(model, 60)
    kinds = [
        (3, 1, None, 1),
        (20, 7, TREE, 7),
        (0, 17, None, 0),
        (31, 4, chain(3), 4),
        (17, 9, None, 1),
        (1, 2, None, 2),
    ]

    def segments() -> list[Segment]:
        created = []
        for begun, number, tree, read_out in kinds:
            cache = native.new_cache(64)
            if begun:
                native.read(ids[:begun], cache)
            created.append(Segment(cache, ids[begun : begun + number].tolist(), tree, read_out))
        return created

    expected = [native.run([segment])[0] for segment in segments()]
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 1, 3], [1, 5]):
        together = segments()
        result = native.run([together[n] for n in order])
        for n, read in zip(order, result, strict=True):
            assert all(map(torch.equal, read, expected[n]))
            assert together[n].cache.length == sum(kinds[n][:2])


def test_drafts_do_not_pay_in_large_batches() -> None:
    """With costs at which rows are almost free up to eight, and cost as much as the first after
    that."""
    speculation = Speculation(target_of("toy"))
    speculation.costs = CostModel({1: 1.0, 8: 1.2, 16: 2.4, 64: 9.6}, 0.0)

    def pays(sequences: int, gain: float, rows: float = 4.0, seconds: float = 0.0) -> bool:
        drafter = SequenceDrafter(GenerationRequest((1,), 8, lookup=True), 64)
        drafter.mean_accepted, drafter.mean_rows, drafter.mean_seconds = gain, rows, seconds
        return speculation.pays_off(drafter, sequences, sequences)

    assert [pays(n, 1.0) for n in (1, 2, 4, 8, 16, 32)] == [True] * 3 + [False] * 3
    assert not pays(1, 0.01) and not pays(1, 1.0, seconds=2.0)
    assert pays(16, 5.0) and pays(60, 1.0, 0.0)  # all tokens accepted; no match costs nothing


def test_rejected_drafts_pause_drafting() -> None:
    drafter = SequenceDrafter(GenerationRequest((1,), 8, lookup=True), 64)
    for _ in range(40):
        drafter.record_accepted(0)
    assert drafter.mean_accepted < 0.02
    for _ in range(100):
        drafter.record_skip()
    assert drafter.mean_accepted > 0.5
