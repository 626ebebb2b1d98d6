"""Sampling with a drafter keeps the distribution of the target model."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from backend.decoding.acceptance import Acceptance, Sampling, draw
from backend.decoding.draft_tree import (
    NO_TREE,
    DraftTokens,
    DynamicTree,
    NoDraft,
    Proposer,
    StaticTree,
    Tree,
)
from backend.decoding.serving.loop import decode
from backend.decoding.target_model import TargetModel
from backend.drafters.config import DECLARED_DRAFTERS
from backend.drafters.generate import TreeProposer
from backend.errors import ComputeError, ConfigError
from tests.conftest import ALL
from tests.drafters.toys import base, built, drafter_of, toy_prompts
from tests.refusals import refusal

VOCABULARY = 3
WALKS = 8_000  # enough that a temperature wrong by a tenth fails with a chance above 0.9999
TREE = Tree([(0,), (1,), (0, 0), (0, 1), (1, 0)])


def p_value(counts: Sequence[float], expected: Sequence[float]) -> float:
    """Return the p-value of Pearson's chi-square test."""
    result, wanted = torch.tensor(counts).double(), torch.tensor(expected).double()
    statistic = ((result - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor((len(counts) - 1) / 2).double()
    return torch.special.gammaincc(freedom, statistic / 2).item()


def table(seed: int = 0) -> dict[tuple[int, ...], Tensor]:
    """Return the logits of the next token after every text of up to three tokens."""
    random = torch.Generator().manual_seed(seed)
    texts = [t for n in range(4) for t in itertools.product(range(VOCABULARY), repeat=n)]
    return {text: 1.5 * torch.randn(VOCABULARY, generator=random) for text in texts}


def processors(sampling: Sampling) -> LogitsProcessorList:
    """Return the logits processors of transformers in its order."""
    processed = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    processed.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processed.append(TopKLogitsWarper(sampling.top_k))
    processed.append(TopPLogitsWarper(sampling.top_p))
    return processed


def exact(logits: dict, sampling: Sampling) -> dict[tuple[int, int], float]:
    """Return P(a, b) after the empty text, computed from the definition."""
    processed = processors(sampling)

    def chances(text: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([[0, *text]])
        return processed(ids, logits[text][None])[0].softmax(-1)

    return {
        (a, b): (chances(())[a] * chances((a,))[b]).item()
        for a in range(VOCABULARY)
        for b in range(VOCABULARY)
    }


def verified(logits: dict) -> dict[tuple[int, tuple[int, ...]], tuple[list[int], Tensor]]:
    """Return the tokens of a tree and the target's logits at its nodes."""
    result = {}
    for first in range(VOCABULARY):
        for order in itertools.permutations(range(VOCABULARY)):
            tokens = [first] + [order[rank] for _, rank in TREE.slots]
            paths = [tuple(tokens[n] for n in TREE.lineage(node)) for node in range(len(TREE))]
            result[first, order] = tokens, torch.stack([logits[path] for path in paths])
    return result


def drawn_pairs(logits: dict, sampling: Sampling, count: int = WALKS) -> Counter:
    """Sample pairs of tokens by walking trees with random guesses."""
    rule, dice, trees = Acceptance(sampling), Random(9), verified(logits)
    orders, drawn = list(itertools.permutations(range(VOCABULARY))), Counter[tuple[int, ...]]()
    start = logits[()][None]
    for _ in range(count):
        first = rule.walk(NO_TREE, [0], start, [])[1]
        tokens, rows = trees[first, dice.choice(orders)]
        path, bonus = rule.walk(TREE, tokens, rows, [0])
        text = [*(tokens[node] for node in path), bonus]
        drawn[tuple(text[:2])] += 1
    return drawn


@pytest.mark.parametrize(
    "sampling",
    [
        *[Sampling(temperature=1.0), Sampling(temperature=1.6, top_k=2, seed=2)] * ALL,
        Sampling(temperature=2.0, top_p=0.8, seed=3),
        Sampling(temperature=1.0, repetition_penalty=1.8, seed=4),
    ],
    ids=str,
)
def test_two_tokens_have_exactly_the_distribution_of_the_base(sampling: Sampling) -> None:
    logits = table()
    drawn, expected = drawn_pairs(logits, sampling), exact(logits, sampling)
    possible = [pair for pair, chance in expected.items() if chance > 0]
    assert set(drawn) <= set(possible)
    counts = [drawn[pair] for pair in possible]
    total = sum(expected[pair] for pair in possible)
    assert p_value(counts, [WALKS * expected[pair] / total for pair in possible]) > 0.001


class ConstantProposer(NoDraft):
    """Proposer that drafts the same tokens at every step."""

    nodes = len(TREE)

    def propose(self, hidden: Tensor, tokens: object) -> DraftTokens:
        return DraftTokens([rank for _, rank in TREE.slots], TREE)


def test_the_whole_loop_has_the_distribution_of_the_base() -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    target, count = TargetModel(built(config)), 1200
    samplings = (Sampling(temperature=1.0, seed=seed) for seed in range(count))
    texts = (
        decode(target, ConstantProposer(), [0, 1], 3, sampling=sampling) for sampling in samplings
    )
    drawn = Counter(tuple(t for step in text for t in step.tokens)[1:] for text in texts)
    expected: Counter = Counter()
    with torch.inference_mode():
        for text in itertools.product(range(VOCABULARY), repeat=3):
            ids = torch.tensor([[0, 1, *text]])
            chances = target.model(input_ids=ids).logits[0].softmax(-1)
            chance = torch.stack([chances[1 + n, token] for n, token in enumerate(text)]).prod()
            expected[text[1:]] += chance.item()
    counts, wanted = zip(*[(drawn[p], count * c) for p, c in expected.items()], strict=True)
    assert p_value(counts, wanted) > 0.001


@pytest.mark.parametrize(
    "sampling",
    [Sampling(0.8, seed=3), Sampling(1.0, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=4)],
    ids=str,
)
def test_the_same_seed_writes_the_same_text_with_and_without_a_tree(sampling: Sampling) -> None:
    """One random number per token; all changes of logits apply at every node."""
    target, prompt = base(), toy_prompts()[1]
    proposers: list[Proposer] = [NoDraft()]
    for architecture in DECLARED_DRAFTERS:
        drafter = drafter_of(target, scale=0.2, heads=2, architecture=architecture)
        trees = (StaticTree(TREE), DynamicTree(6, 0.05))
        proposers += [TreeProposer(drafter, target, tree) for tree in trees]
    texts = [
        [t for step in decode(target, proposer, prompt, 40, sampling=sampling) for t in step.tokens]
        for proposer in proposers
    ]
    assert texts == [texts[0]] * len(proposers)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
def test_sampling_out_of_range_is_refused(fields: dict, name: str) -> None:
    with refusal(name, error=ConfigError):
        Sampling(**fields)


@pytest.mark.parametrize("spread", [0.2, 4.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.3), (0, 0.97), (40, 1.0), (90, 0.9)])
def test_a_quantile_refers_to_all_probabilities(spread: float, top_k: int, top_p: float) -> None:
    """The share of quantiles that return a token equals its probability."""
    logits = spread * torch.randn(3000, generator=torch.manual_seed(1)).double()
    sampling = Sampling(1.0, top_k, top_p)
    expected = processors(sampling)(torch.zeros(1, 0).long(), logits[None])[0].softmax(-1)
    places = (torch.arange(600) + 0.5) / 600
    drawn = torch.tensor([draw(logits.float(), top_k, top_p, float(x)) for x in places])
    counts = drawn.bincount(minlength=3000)
    assert (expected[drawn] > 0).all()
    assert (counts - 600 * expected).abs().max() < 1.05  # one quantile more or less
    with pytest.raises(ComputeError):
        draw(logits.float() * math.nan, top_k, top_p, 0.5)
