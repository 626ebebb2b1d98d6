"""Training of drafters: loss and gradient, data, accuracy of the heads, and resuming."""

import json
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

from backend.checkpoints import Checkpoints
from backend.decoding.draft_tree import NoDraft, best_tree, grow
from backend.decoding.serving.loop import decode
from backend.decoding.target_model import TargetModel
from backend.drafters.amphista import AmphistaDrafter
from backend.drafters.config import ARMS, TrainingConfig
from backend.drafters.generate import TreeProposer
from backend.drafters.registry import build_drafter
from backend.drafters.training.hidden_state_cache import (
    HiddenStateCache,
    SequenceSources,
    collect,
    draft_vocabulary,
)
from backend.drafters.training.loss import (
    DISCOUNT,
    LABEL_WEIGHT,
    LENGTH_STEP,
    ROW_STEP,
    loss_and_gradient,
    measure_heads,
    padded,
)
from backend.drafters.training.prompts import read, write_answers
from backend.drafters.training.trainer import (
    CHECKPOINT,
    PACE_STEPS,
    DrafterTrainer,
)
from backend.errors import CancelledError, ComputeError, ConfigError
from backend.models.loading import load
from backend.reporter import SilentReporter
from tests.conftest import ALL
from tests.drafters.toys import END, base, drafter_of, mean_accepted, toy_prompts
from tests.refusals import refusal
from tests.toy_layers import Recorder

Corpora = tuple[HiddenStateCache, HiddenStateCache]
SHORT = {"minutes": 0, "batch": 4, "learning_rate": 2e-3}
LIMIT = 40


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    """Return greedy answers of the toy for training and evaluation."""
    prompts = toy_prompts(72)
    sources = SequenceSources(prompts[20:], prompts[:20], limit=LIMIT, ends=[END])
    folder = tmp_path_factory.mktemp("corpus")
    return collect(base(), sources, Checkpoints(folder), SilentReporter())


def curve(told: Recorder, name: str) -> dict[int, float]:
    """Map steps to values."""
    return {step: value for key, value, step in told.metrics if key == name}


def training(
    drafter: AmphistaDrafter,
    corpora: Corpora,
    folder: Path,
    reporter: SilentReporter | None = None,
    seed: int = 0,
    **fields: object,
) -> DrafterTrainer:
    config = TrainingConfig.model_validate({**SHORT, **fields})
    checkpoints = Checkpoints(folder)
    return DrafterTrainer(
        drafter, base(), *corpora, config, seed, checkpoints, reporter or SilentReporter()
    )


def test_answers_of_one_token_have_no_anchors(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = corpora[0]
    short = [
        min(n, s + 1) if k % 2 else n
        for k, (n, s) in enumerate(zip(learned.lengths, learned.starts, strict=True))
    ]
    monkeypatch.setattr(learned, "lengths", short)
    work = training(drafter_of(base()), corpora, tmp_path, batch=1)
    assert work.indices and not any(k % 2 for k in work.indices)
    assert all(len(work.anchor_batch(step).rows) for step in range(len(work.indices)))


# data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # PyTorch; native
def test_answers_in_batches_are_those_written_alone(dtype: torch.dtype) -> None:
    """Token for token, because a batch does not change sums in bfloat16."""
    target, prompts = TargetModel(load("toy", dtype=dtype).model), toy_prompts()[:6]
    assert bool(target.native) == (dtype == torch.bfloat16)
    result = write_answers(target, prompts, 30, [END], 0.0, 0, SilentReporter())
    for prompt, row in zip(prompts, result, strict=True):
        steps = decode(target, NoDraft(), prompt, 30, [END])
        assert row["ids"].tolist() == [*prompt, *(token for step in steps for token in step.tokens)]


def test_recorded_states_equal_those_of_reading() -> None:
    prompts = toy_prompts()[:6]
    assert len({len(prompt) for prompt in prompts}) > 1
    created = write_answers(base(), prompts, 30, [END], 0.0, 0, SilentReporter())
    for start, kept in zip(map(len, prompts), created, strict=True):
        result = read(base(), kept["ids"].long())
        for name in ("best", "denominator", "hidden"):
            exact = {} if name != "hidden" else {"atol": 0.02, "rtol": 0.02}
            first = 0 if name == "hidden" else start - 1
            torch.testing.assert_close(kept[name][first:-1], result[name][first:-1], **exact)
            assert not kept[name][:first].any() and not kept[name][-1].any()


def test_sampled_answers_depend_on_the_seed() -> None:
    prompts = toy_prompts()[:6]

    def written(seed: int) -> list[list[int]]:
        result = write_answers(base(), prompts, 20, [END], 0.9, seed, SilentReporter())
        return [each["ids"].tolist() for each in result]

    assert written(1) == written(1) != written(2)


def test_the_teacher_can_be_rebuilt_from_what_is_stored(corpora: Corpora) -> None:
    sample, target = corpora[0][3], base()
    chances = target.model(input_ids=sample.ids.long()[None]).logits[0].softmax(-1)
    logits = target.logits(sample.hidden.float())
    rebuilt = (logits - sample.denominator[:, None]).exp()
    known = slice(sample.start - 1, -1)
    torch.testing.assert_close(rebuilt[known], chances[known], atol=0.03, rtol=0.05)
    assert torch.equal(sample.best[known].long(), chances[known].argmax(-1))
    assert 0 < sample.start < len(sample.ids)


def test_a_spread_has_the_requested_number_of_tokens(corpora: Corpora) -> None:
    learned = corpora[0]
    some, everything = learned.spread(200), learned.spread(10**6)
    assert 200 <= sum(map(len, some)) < 200 + max(learned.lengths)
    assert sorted(map(len, everything)) == sorted(learned.lengths)


def test_the_draft_vocabulary_has_the_most_frequent_tokens(corpora: Corpora) -> None:
    counts = corpora[0].token_counts(base().vocabulary)
    ids = draft_vocabulary(corpora[0], base().vocabulary, 50)
    assert len(ids) == 50 and torch.equal(ids, ids.sort().values)
    remainder = torch.ones(base().vocabulary, dtype=torch.bool)
    remainder[ids] = False
    assert counts[ids].min() >= counts[remainder].max()
    assert len(draft_vocabulary(corpora[0], 512, 0)) == 512


# the loss -----------------------------------------------------------------------------------------


def plain_loss(training: DrafterTrainer, slots: torch.Tensor, batch: object) -> torch.Tensor:
    """Compute the loss from its definition, for each anchor and head, on the full vocabulary."""
    drafter, target = training.drafter, training.target
    logits, total = drafter.logits(slots).float(), torch.zeros(())
    for n, (row, place) in enumerate(zip(batch.rows, batch.positions, strict=True)):
        for k in range(drafter.config.heads):
            if not batch.valid[n, k]:
                continue
            state = batch.hidden[row, place + 1 + k].float()
            teacher = (target.logits(state) - batch.denominator[row, place + 1 + k]).exp()
            expected = teacher[drafter.vocabulary]
            label = int(batch.ids[row, place + 2 + k])
            expected = expected + LABEL_WEIGHT * (drafter.vocabulary == label)
            term = -(expected * logits[n, k].log_softmax(-1)).sum()
            total = total + DISCOUNT**k * term
    return total / len(slots)


@pytest.mark.parametrize("vocabulary", [512, 60])
def test_loss_and_gradient_are_those_of_the_definition(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: int
) -> None:
    monkeypatch.setattr("backend.drafters.training.loss.CHUNK", 7)  # several chunks
    whole = drafter_of(base(), heads=3, scale=0.2)
    ids = draft_vocabulary(corpora[0], 512, vocabulary)
    drafter = build_drafter(whole.config, base(), ids)
    work = training(drafter, corpora, tmp_path, batch=2)
    batch = work.anchor_batch(0)
    slots = torch.randn(len(batch.rows), 3, base().width, requires_grad=True)
    with torch.no_grad():
        loss, gradient = loss_and_gradient(drafter, slots, batch)
    expected = plain_loss(work, slots, batch)
    assert len(slots) > 7
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    wanted = torch.autograd.grad(expected, slots)[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


def test_anchors_lie_in_the_answers(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.drafters.training.trainer.ANCHOR_SHARE", 1.0)
    work = training(drafter_of(base()), corpora, tmp_path)
    batch = work.anchor_batch(2)
    samples = [corpora[0][index] for index in work._sequences(2)]
    for row, place, valid in zip(batch.rows, batch.positions, batch.valid, strict=True):
        sample = samples[row]
        assert sample.start - 1 <= place < len(sample.ids) - 2
        assert valid.tolist() == [place + 1 + k < len(sample.ids) for k in (1, 2, 3, 4)]


def test_shapes_recur(corpora: Corpora, tmp_path: Path) -> None:
    """Kernels are compiled per shape, so there are few shapes."""
    work = training(drafter_of(base()), corpora, tmp_path, batch=8)
    batch = [work.anchor_batch(step) for step in range(12)]
    assert {len(result.rows) % ROW_STEP for result in batch} == {0}
    assert {result.ids.shape[1] % LENGTH_STEP for result in batch} == {1}
    assert (padded(33, 256), padded(48, 256), padded(97, 100)) == (48, 48, 100)
    few = training(drafter_of(base()), corpora, tmp_path, batch=1).anchor_batch(0)
    assert len(few.rows) < ROW_STEP  # not more anchors than there are
    assert len({(int(r), int(p)) for r, p in zip(few.rows, few.positions, strict=True)}) == len(
        few.rows
    )


# training -----------------------------------------------------------------------------------------


def test_every_head_learns_and_early_heads_are_better(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.drafters.training.trainer.MIN_STEPS_BETWEEN", 16)
    drafter, told = drafter_of(base()), Recorder()
    before = measure_heads(drafter, base(), corpora[1], SilentReporter())
    after = training(drafter, corpora, tmp_path, told, steps=60).run()
    losses = list(curve(told, "loss").values())
    assert len(losses) == 60 and mean(losses[-10:]) < 0.8 * mean(losses[:10])
    assert all(a > b for a, b in zip(after.top(1), before.top(1), strict=True))
    assert after.top(1) == sorted(after.top(1), reverse=True)
    assert all(one <= five for one, five in zip(after.top(1), after.top(5), strict=True))
    assert 1 < after.accepted(4) <= after.accepted(16) < 5
    assert [*curve(told, "top1@head-1")] == [16, 32, 48, 60] and curve(told, "accepted")


def test_a_killed_training_resumes_bit_for_bit(corpora: Corpora, tmp_path: Path) -> None:
    whole = drafter_of(base())
    expected = training(whole, corpora, tmp_path / "a", steps=20).run()
    enough = PACE_STEPS + 4
    killed, told = drafter_of(base()), Recorder(stop=lambda x: len(curve(x, "loss")) >= enough)
    with pytest.raises(CancelledError):
        training(killed, corpora, tmp_path / "b", told, steps=20).run()
    facts = next((tmp_path / "b").rglob("facts.json"))
    before = json.loads(facts.read_text())["seconds"]
    resumed, remainder = drafter_of(base(), seed=9), Recorder()
    result = training(resumed, corpora, tmp_path / "b", remainder, steps=20).run()
    assert min(curve(remainder, "loss")) == PACE_STEPS + 1  # the checkpoint, not the start
    assert json.loads(facts.read_text())["seconds"] > before > 0  # sum of both attempts
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert torch.equal(expected.ranks, result.ranks)


def test_a_time_budget_determines_the_steps_once(corpora: Corpora, tmp_path: Path) -> None:
    work = training(drafter_of(base()), corpora, tmp_path, minutes=0.02)
    work.run()
    assert work.step == work.steps >= PACE_STEPS
    again = training(drafter_of(base()), corpora, tmp_path, minutes=500)
    again.restore()
    assert again.steps == work.steps  # the stored number counts
    assert Checkpoints(tmp_path).find(CHECKPOINT)


def test_diverging_training_is_an_error(corpora: Corpora, tmp_path: Path) -> None:
    drafter = drafter_of(base())
    drafter.heads.bias.data.fill_(float("nan"))
    with refusal("learning_rate", "diverged", "Lower", error=ComputeError):
        training(drafter, corpora, tmp_path, steps=5).run()


def test_sequences_too_short_are_refused(tmp_path: Path) -> None:
    sources = SequenceSources([[1, 2, 3]] * 4, [[1, 2, 3]] * 2, limit=0)
    corpora = collect(base(), sources, Checkpoints(tmp_path / "c"), SilentReporter())
    assert [len(each) for each in corpora] == [4, 2] and corpora[0][0].start == 0  # plain text
    with refusal("answers", "no training data", error=ConfigError):
        training(drafter_of(base()), corpora, tmp_path)


# order of the arms --------------------------------------------------------------------------------


def accepted(arm: str, corpora: Corpora, folder: Path, seed: int) -> float:
    """Return the mean accepted length of greedy decoding after equal steps, with a tree of eight
    nodes for each arm."""
    drafter, target = drafter_of(base(), seed=seed, **ARMS[arm]), base()
    judged = training(drafter, corpora, folder / arm / str(seed), seed=seed, steps=30).run()
    proposer = TreeProposer(drafter.eval(), target, best_tree(grow(judged.answers), 8))
    result = []
    for prompt in toy_prompts(78)[72:]:
        result.append(mean_accepted(list(decode(target, proposer, prompt, 48, [END]))))
    return mean(result)


def test_amphista_accepts_more_than_medusa(
    corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After equal steps, on average of the seeds; with `make test-all` over three, by more than two
    standard errors of the difference."""
    monkeypatch.setattr(
        "backend.drafters.training.trainer.MAX_EVALUATIONS", 1
    )  # evaluations take most of the time
    gains = [
        accepted("Amphista", corpora, tmp_path, seed) - accepted("Medusa", corpora, tmp_path, seed)
        for seed in range(3 if ALL else 1)
    ]
    assert mean(gains) > (2 * stdev(gains) / 3**0.5 if ALL else 0)
