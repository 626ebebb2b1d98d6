"""Drafter modules: attention, initialization and parameters."""

import pytest
import torch

from backend.decoding.draft_tree import Tree
from backend.decoding.target_model import TargetModel, fingerprint
from backend.drafters.adaptation import ClonedLayer, final_norm
from backend.drafters.adapted import ridge
from backend.drafters.amphista import AmphistaDrafter
from backend.drafters.config import ARMS, DrafterConfig
from backend.drafters.generate import TreeProposer
from backend.drafters.registry import build_drafter
from backend.errors import ModelError
from backend.models.blocks import decoder_blocks
from tests.drafters.toys import ARCHITECTURES, all_logits, base, built, drafter_of, random_ids
from tests.refusals import refusal

SEQUENTIAL = {"EAGLE", "Hydra"}
NAMES = ["toy", *ARCHITECTURES]


def guesses(drafter: AmphistaDrafter, target: TargetModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits [n, K, v] at every anchor of one sequence."""
    hidden = target.hidden(ids[None])
    return all_logits(drafter, hidden[:, :-1], target.embed(ids[None, 1:]))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_clone_computes_what_the_layer_computes_in_the_base(name: str) -> None:
    target = base(name)
    block, observed = target.layers - 1, []

    def see(_: object, args: tuple, kwargs: dict, out: object) -> None:
        observed.append((args[0] if args else kwargs["hidden_states"], out))

    module = decoder_blocks(target.model)[block]
    hook = module.register_forward_hook(see, with_kwargs=True)
    target.hidden(random_ids(target, 20)[None])
    hook.remove()
    inputs, outputs = observed[0]
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    clone = ClonedLayer(target.model, block, torch.float32)
    torch.testing.assert_close(clone(inputs), outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_final_norm_is_found(name: str) -> None:
    target, observed = base(name), []
    module = final_norm(target.model)[1]
    hook = module.register_forward_hook(lambda _, args, out: observed.append(out))
    hidden = target.hidden(random_ids(target, 5)[None])
    hook.remove()
    assert torch.equal(observed[-1].view_as(hidden), hidden)


@pytest.mark.parametrize("arm", ARMS)
@torch.no_grad()
def test_no_anchor_sees_what_comes_after_it(arm: str) -> None:
    target = base("grouped")
    drafter = drafter_of(target, scale=0.3, **ARMS[arm])
    ids, changed = random_ids(target, 24), random_ids(target, 24)
    changed[13:] = random_ids(target, 11, seed=8)
    before, after = guesses(drafter, target, ids), guesses(drafter, target, changed)
    for head in range(4):
        known = 12 - head * (arm in SEQUENTIAL)  # anchor 11 sees tokens 0..12, and its path
        torch.testing.assert_close(before[:known, head], after[:known, head])
        assert not torch.allclose(before[known + 1 :, head], after[known + 1 :, head])


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("grouped", "EAGLE"),
        ("gpt2", "EAGLE"),
        ("capped, some windows", "EAGLE"),
        ("grouped", "Hydra"),
    ],
)
@torch.no_grad()
def test_a_sequential_draft_is_that_of_the_text_along_each_path(name: str, arm: str) -> None:
    target, anchor = base(name), 20
    drafter = drafter_of(target, scale=0.3, **ARMS[arm])
    tree = Tree([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0), (1, 0, 0), (1, 0, 1)])
    ids = random_ids(target, 40)
    hidden = target.hidden(ids[None])
    proposer = TreeProposer(drafter, target, tree)
    proposer.start(int(ids[0]), 60)
    proposer.propose(hidden[0, :10], ids[1:11].tolist())
    drafted = [0, *proposer.propose(hidden[0, 10:21], ids[11:22].tolist()).tokens]
    for leaf in (4, 6, 7, 8):
        nodes = tree.lineage(leaf)[1:]
        text = torch.cat([ids[: anchor + 2], torch.tensor([drafted[node] for node in nodes])])
        states = torch.cat([hidden[:, : anchor + 1], torch.randn(1, len(nodes), target.width)], 1)
        place = torch.tensor([anchor])
        slots = drafter.anchor_slots(states, target.embed(text[None, 1:]), place * 0, place)[0]
        best = drafter.logits(slots).topk(2).indices
        for head, node in enumerate(nodes):
            assert drafted[node] == best[head, tree.slots[node - 1][1]]


@torch.no_grad()
def test_only_drafters_with_the_sampled_token_depend_on_it() -> None:
    target = base("grouped")
    ids, changed = random_ids(target, 24), random_ids(target, 24)
    changed[12] += 1
    for arm, observed in (
        ("Amphista", True),
        ("Without the sampled token", False),
        ("Medusa", False),
    ):
        drafter = drafter_of(target, scale=0.3, **ARMS[arm])
        before, after = guesses(drafter, target, ids)[11], guesses(drafter, target, changed)[11]
        assert torch.allclose(before, after) != observed, arm


@pytest.mark.parametrize("name", ["toy", "grouped", "gpt2", "opt", "capped, some windows"])
@torch.no_grad()
def test_new_anchors_with_a_cache_equal_the_whole_sequence(name: str) -> None:
    """All of them as stages, and the last of each part as a draft."""
    target = base(name)
    drafter = drafter_of(target, scale=0.3)
    ids = random_ids(target, 30)
    hidden, embedded = target.hidden(ids[None])[:, :-1], target.embed(ids[None, 1:])
    logits, parts = guesses(drafter, target, ids), []
    caches, of_drafts = drafter.new_caches(40), drafter.new_caches(40)
    for start, end in ((0, 11), (11, 12), (12, 15), (15, 29)):
        part = hidden[:, start:end], embedded[:, start:end]
        parts.append(drafter.stages(*part, caches))
        slots = drafter.draft_slots(*part, of_drafts)
        torch.testing.assert_close(drafter.logits(slots), logits[end - 1], rtol=1e-4, atol=1e-4)
    for number, stage in enumerate(drafter.stages(hidden, embedded)):
        result = torch.cat([part[number] for part in parts], 1)
        torch.testing.assert_close(result, stage, rtol=1e-4, atol=1e-4)
    assert [cache.length for cache in caches] == [29, 29]


def test_only_the_encoder_connects_heads() -> None:
    target = base("grouped")
    for arm, encoder in (("Amphista", True), ("Staged adaptation only", False)):
        drafter = drafter_of(target, scale=0.3, heads=4, **ARMS[arm])
        state = torch.randn(3, 32)
        slots = drafter.slots([state, state])
        gradient = torch.autograd.grad(drafter.logits(slots)[0, 0].sum(), drafter.heads.bias)[0]
        last = gradient[0, 3].abs().sum().item()  # from the last head to the logits of the first
        assert (last > 0) == encoder


def test_no_gradient_reaches_the_base() -> None:
    target = TargetModel(built(ARCHITECTURES["grouped"]))
    before = fingerprint(target.model)
    target.model.requires_grad_()
    drafter = drafter_of(target)
    hidden = target.hidden(random_ids(target, 12)[None]).detach()
    embedded = target.embed(random_ids(target, 12)[None, 1:]).detach()
    all_logits(drafter, hidden[:, :-1], embedded).square().sum().backward()
    assert all(p.grad is None for p in target.model.parameters())
    assert all(p.grad is not None for p in drafter.layers.parameters())
    torch.optim.SGD(drafter.parameters(), 0.1).step()
    assert fingerprint(target.model) == before


# initialization -----------------------------------------------------------------------------------


@torch.no_grad()
def test_medusa_starts_with_heads_that_repeat_the_base() -> None:
    target = base()
    drafter = drafter_of(target, **ARMS["Medusa"])
    ids = random_ids(target, 10)
    result = guesses(drafter, target, ids)
    expected = target.logits(target.hidden(ids[None])[0, :-1])
    for head in range(4):
        torch.testing.assert_close(result[:, head], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_fit_is_the_least_squares_solution_and_helps_from_the_start() -> None:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 6, generator=random)
    true = torch.randn(4, 6, generator=random)
    weight, explained = ridge(inputs, inputs @ true.T, strength=0.01)
    torch.testing.assert_close(weight, true, rtol=0.02, atol=0.03)
    assert explained > 0.99


# sizes and arms -----------------------------------------------------------------------------------


def test_a_matched_medusa_has_as_many_weights() -> None:
    target = base()
    whole = drafter_of(target).parameter_count()
    matched = drafter_of(target, **ARMS["Medusa, as many parameters"]).parameter_count()
    plain = drafter_of(target, **ARMS["Medusa"]).parameter_count()
    assert abs(matched / whole - 1) < 0.1 and plain < whole / 5


def test_a_reduced_vocabulary_reads_the_same_rows() -> None:
    target = base()
    ids = torch.tensor([3, 77, 200])
    few = build_drafter(DrafterConfig(), target, ids)
    state = torch.randn(2, target.width)
    torch.testing.assert_close(few.logits(state), target.logits(state)[:, ids])


def test_a_layer_that_cannot_be_cloned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = base("grouped")
    monkeypatch.setattr(
        "backend.drafters.adaptation.AutoModel.from_config",
        lambda *args, **kwargs: (_ for _ in ()).throw(ValueError("unknown architecture")),
    )
    with refusal("architecture", "cannot be cloned", "medusa", error=ModelError):
        build_drafter(DrafterConfig(), target, torch.arange(8))
    build_drafter(DrafterConfig(**ARMS["Medusa"]), target, torch.arange(8))
