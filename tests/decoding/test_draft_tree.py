"""Draft trees: topology, growth from ranks, and equality of tree logits and path logits."""

from functools import wraps
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
)

from backend.decoding.draft_tree import (
    Path,
    Tree,
    best_tree,
    chain,
    expected_length,
    frequent_paths,
    grow,
    walk,
    walked_lengths,
)
from backend.decoding.target_model import TargetModel, fingerprint
from backend.errors import ModelError
from backend.models.kv_cache import sliding_window
from tests.drafters.toys import ARCHITECTURES, MORE, SIZES, base, built, random_ids
from tests.refusals import refusal

paths = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), max_size=12)
rank_rows = st.lists(
    st.lists(st.integers(-1, 3), min_size=3, max_size=3), min_size=1, max_size=40
).map(torch.tensor)


def closed(some: list[Path]) -> Tree:
    """Return the smallest tree with these paths."""
    return Tree(path[:n] for path in some for n in range(1, len(path) + 1))


@given(paths)
def test_parents_precede_and_ancestors_are_transitive(some: list[Path]) -> None:
    tree = closed(some)
    assert all(parent < node for node, parent in enumerate(tree.parents))
    observed = tree.ancestors
    assert torch.equal(observed, (observed.int() @ observed.int()) > 0)
    for node in range(len(tree)):
        line = tree.lineage(node)
        assert line[0] == 0 and line[-1] == node and len(line) == tree.depths[node] + 1
        assert observed[node].nonzero().flatten().tolist() == line
        assert [tree.slots[n - 1][1] for n in line[1:]] == list([(), *tree.paths][node])


def test_a_path_without_its_parent_is_no_tree() -> None:
    for wrong in ([(0, 0)], [(0,), (1, 0)], [(-1,)], [()]):
        with pytest.raises(ValueError, match="no parent"):
            Tree(wrong)


def test_a_chain_has_one_child_each() -> None:
    assert chain(3).parents == [-1, 0, 1, 2] and chain(0).parents == [-1]
    assert torch.equal(chain(3).ancestors, torch.ones(4, 4).tril().bool())


def every_tree(nodes: int, heads: int, ranks: int) -> list[Tree]:
    """Return all trees of `nodes` nodes by brute force."""
    pool: list[Path] = [()]
    for _ in range(heads):
        pool += [(*p, r) for p in pool for r in range(ranks) if (*p, r) not in pool]
    result = []
    for chosen in combinations([p for p in pool if p], nodes - 1):
        if all(path[:-1] in chosen or len(path) == 1 for path in chosen):
            result.append(Tree(chosen))
    return result


def accepted_lengths(ranks: torch.Tensor, tree: Tree) -> list[int]:
    """Return the accepted length at each anchor by brute force."""
    lengths = []
    for row in ranks.tolist():
        depth = 0
        while depth < len(row) and tuple(row[: depth + 1]) in tree.paths:
            depth += 1
        lengths.append(1 + depth)
    return lengths


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=1, max_size=20))
def test_no_tree_of_its_size_accepts_more_than_the_grown_one(rows: list[list[int]]) -> None:
    ranks = torch.tensor(rows)
    paths = frequent_paths(ranks)
    for nodes in (1, 2, 3, 4):
        best = sum(accepted_lengths(ranks, Tree(paths[: nodes - 1])))
        for other in every_tree(nodes, heads=2, ranks=2):
            assert sum(accepted_lengths(ranks, other)) <= best


@given(st.lists(rank_rows, min_size=1, max_size=4))
def test_every_prefix_of_a_growth_is_a_tree_and_its_length_is_that_of_a_walk(
    answers: list[torch.Tensor],
) -> None:
    growth = grow(answers)
    halves = (answers[::2], answers[1::2]) if len(answers) > 1 else (answers, answers)
    for nodes in range(1, len(growth) + 2):
        assert len(best_tree(growth, nodes)) == nodes
        tokens = passes = 0
        for grown, walked in (halves, halves[::-1]):
            tree = Tree(frequent_paths(torch.cat(grown))[: nodes - 1])
            for ranks in walked:
                created, taken = walk(accepted_lengths(ranks, tree))
                tokens, passes = tokens + created, passes + taken
        assert expected_length(growth, nodes) == pytest.approx(tokens / passes)


def test_accepted_tokens_are_skipped() -> None:
    """If three tokens in a row are accepted, the easy anchors between them are skipped."""
    ranks = torch.tensor([[0, 0], [0, -1], [-1, -1], [-1, -1]])
    assert accepted_lengths(ranks, chain(2)) == [3, 2, 1, 1]  # 1.75 over all anchors
    assert walk(accepted_lengths(ranks, chain(2))) == (4, 2)
    assert walked_lengths([ranks], [1, 2, 3]) == [1.0, 4 / 3, 2.0]


def test_the_accepted_length_is_measured_on_held_out_answers() -> None:
    """A tree grown on random ranks is good only on these ranks."""
    random = torch.Generator().manual_seed(0)
    answers = [torch.randint(0, 60, (30, 3), generator=random) for _ in range(2)]
    tree = best_tree(grow(answers), 16)
    own = sum(accepted_lengths(torch.cat(answers), tree)) / 60
    assert walked_lengths(answers, [16])[0] < own


@pytest.mark.parametrize("name", [*ARCHITECTURES, "toy"])
@pytest.mark.parametrize("seed", range(3))
def test_tree_logits_are_those_of_each_path(name: str, seed: int) -> None:
    assert_logits_of_paths(base(name), seed)


def test_eager_attention_verifies_trees_too() -> None:
    model = built(ARCHITECTURES["grouped"])
    model.set_attn_implementation("eager")
    assert_logits_of_paths(TargetModel(model), 0)


def assert_logits_of_paths(target: TargetModel, seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    some = [
        tuple(torch.randint(0, 3, (1 + int(length),), generator=dice).tolist())
        for length in torch.randint(0, 4, (6,), generator=dice)
    ]
    tree = closed(some)
    context, tokens = random_ids(target, 20, seed), random_ids(target, len(tree), seed + 50)
    with torch.inference_mode():
        cache = target.new_cache(64)
        target.hidden(context[None], cache)
        _, result = target.read(tokens.tolist(), cache, tree, len(tree))
        for node in range(len(tree)):
            path = torch.cat([context, tokens[tree.lineage(node)]])
            expected = target.model(input_ids=path[None], use_cache=False).logits[0, -1]
            torch.testing.assert_close(result[node], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("path", [[0], [0, 1, 3], [0, 1, 3, 6], [0, 2], [0, 2, 5]])
def test_after_keeping_a_path_the_cache_is_that_of_the_path(path: list[int]) -> None:
    target = base("grouped")
    tree = Tree([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
    assert tree.lineage(path[-1]) == path
    context, tokens = random_ids(target, 9), random_ids(target, len(tree), 7)
    with torch.inference_mode():
        cache = target.new_cache(40)
        target.hidden(context[None], cache)
        target.read(tokens.tolist(), cache, tree)
        cache.keep(9, path)
        assert cache.length == 9 + len(path)
        _, result = target.read([5], cache)
        whole = torch.cat([context, tokens[path], torch.tensor([5])])[None]
        expected = target.model(input_ids=whole, use_cache=False).logits[0, -1]
    torch.testing.assert_close(result[0], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_that_ignores_the_mask_is_refused(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = built(ARCHITECTURES["grouped"]).to(dtype)
    TargetModel(model)
    forward = type(model.model).forward

    @wraps(forward)
    def deaf(self, *args, attention_mask=None, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", deaf)
    with refusal("model", "ignores the given mask", error=ModelError):
        TargetModel(model)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (BloomConfig(vocab_size=128, hidden_size=32, n_layer=3, n_head=4), "position ids"),
        (MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=3), "cache layer"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_unsupported_models_are_refused(config: PretrainedConfig, why: str) -> None:
    with refusal("model", why, error=ModelError):
        TargetModel(AutoModelForCausalLM.from_config(config).eval())


def test_attention_that_takes_no_mask_is_refused() -> None:
    model = built(ARCHITECTURES["grouped"])
    model.config._attn_implementation = "flash_attention_2"
    with refusal("model", "does not accept a tree mask", error=ModelError):
        TargetModel(model)


def test_a_fingerprint_depends_on_weights_but_not_on_precision() -> None:
    model, other = built(ARCHITECTURES["grouped"]), built(ARCHITECTURES["grouped"], seed=1)
    before = fingerprint(model)
    assert fingerprint(model.to(torch.bfloat16)) == before != fingerprint(other)


def test_a_window_is_not_the_context() -> None:
    config = MistralConfig(**SIZES, **MORE, num_key_value_heads=2, sliding_window=32)
    target = TargetModel(built(config))
    assert target.window == sliding_window(target.model) == 32
    assert target.context == config.max_position_embeddings
    assert target.limit == f"the model's context is {target.context}"


def test_frequencies_that_depend_on_the_length_limit_the_context() -> None:
    """Beyond the original context the cached tokens would need other frequencies."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
    }
    lengths = {"max_position_embeddings": 96, "original_max_position_embeddings": 48}
    more = {**SIZES, **MORE, **lengths, "num_key_value_heads": 2}
    target = TargetModel(built(Phi3Config(**more, rope_parameters=rope)))
    assert target.context == 48 and "change after 48 (longrope)" in target.limit
    cache, tokens = target.new_cache(60), random_ids(target, 60)
    with torch.inference_mode():
        target.hidden(tokens[None, :47], cache)
        tree = Tree([(0,), (1,)])  # one position too far
        inside, _ = target.read(tokens[47:50].tolist(), cache, tree)
        alone = target.hidden(tokens[None, :48])[0, -1]
    torch.testing.assert_close(inside[0], alone, rtol=1e-5, atol=2e-5)
