"""Live weights equal those of the first stages of runs bit for bit, and masks from ranks equal
those of the pruners, including ties."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputStatistics
from backend.checkpoints import Checkpoints
from backend.live.dense import DenseModel, TableCache
from backend.live.model import LiveModel
from backend.live.ranks import WeightScores, rank_mask, rank_table
from backend.models.blocks import LinearWeight, all_linears
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.masks import masked
from backend.pruning.pattern import Pattern
from backend.pruning.plan import pruning_plan
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.sds import run_sds
from backend.pruning.stage_store import install
from backend.reporter import SilentReporter
from tests.conftest import ALL
from tests.quantization.dlqat.runs import begun, finished

QUIET = SilentReporter()
Make = Callable[..., DenseModel]
Toy = Callable[[], PreTrainedModel]


def pruned(
    model: PreTrainedModel, ids: Tensor, folder: Path, precision: str, **fields: object
) -> PreTrainedModel:
    """Model after the first stage of a run."""
    config = SDSConfig.model_validate(
        {"until": "first", "control": False, "precision": precision, "batch": 5, **fields}
    )
    checkpoints, plan = Checkpoints(folder), pruning_plan(config, all_linears(model))
    run_sds(model, ids, config, plan, checkpoints, QUIET, torch.float16)
    install(model, checkpoints, SDSStage.FIRST)
    return model


def same(live: LiveModel, weights: dict[str, Tensor]) -> bool:
    pairs = [(live.weight(name), W) for name, W in weights.items()]
    return all(torch.equal(a, b) and torch.equal(a.signbit(), b.signbit()) for a, b in pairs)


def read(linears: list[LinearWeight]) -> dict[str, Tensor]:
    return {x.name: x.read() for x in linears}


@pytest.mark.parametrize(
    ("pruner", "pattern", "precision"),
    [
        *[("magnitude", "50%", "float32"), ("magnitude", "4:8", "float32")] * ALL,
        ("magnitude", "33.3%", "bfloat16"),
        ("wanda", "41.7%", "float32"),
        *[("wanda", "2:4", "bfloat16"), ("sparsegpt", "50%", "float32")] * ALL,
        ("sparsegpt", "2:4", "bfloat16"),
        ("alps", "60%", "float32"),
    ],
)
def test_pruned_layers_equal_those_of_a_run(
    make: Make,
    toy: Toy,
    calibration: Tensor,
    tmp_path: Path,
    pruner: str,
    pattern: str,
    precision: str,
) -> None:
    live = LiveModel(make(precision))
    live.apply(dict.fromkeys(live.dense.in_blocks, pattern), pruner)
    fields = {"pattern": pattern, "base": pruner}
    run = read(all_linears(pruned(toy(), calibration[:12], tmp_path, precision, **fields)))
    if pruner != "magnitude":
        assert set(live.origins.values()) == {"instant", "dense"}
        assert not same(live, run)  # a run collects inputs of the model pruned so far
        assert [steps for steps, _, _ in live.refine()] == [1, 2, 3]
    assert same(live, run)
    assert set(live.origins.values()) == {"refined", "dense"}


@pytest.mark.parametrize(
    ("precision", "grid"),
    [("bfloat16", "symmetric"), ("float32", "zero-point"), ("bfloat16", "offset")],
)
def test_rounded_layers_equal_those_of_a_run(
    make: Make, toy: Toy, calibration: Tensor, tmp_path: Path, precision: str, grid: str
) -> None:
    fields = {"grid": grid, "range_search": "weighted", "saved_precision": "bfloat16"}
    live, ids = LiveModel(make(precision, **fields)), calibration[:12]
    qat = finished(
        begun(
            toy(),
            tmp_path,
            ids,
            bits=3,
            group_size=32,
            stages="rtn, gptq",
            exclude="1.mlp.*",
            precision=precision,
            **fields,
        )
    )
    run = {
        stage: {n: qat.run.weight(stage, x) for n, x in qat.run.linears.items()}
        for stage in qat.stages
    }
    live.apply(dict.fromkeys(qat.run.linears, "int3-g32"))
    assert same(live, run["rtn"])
    codes = live.stored_weight(next(iter(qat.run.linears)))
    assert torch.equal(codes.codes, qat.converted("rtn")[next(iter(qat.run.linears))].codes)
    live.apply({}, quantizer="gptq")
    assert not same(live, run["gptq"])
    assert len([*live.refine()]) == live.dense.blocks
    assert same(live, run["gptq"])


@pytest.mark.parametrize(
    ("grid", "pruned_layers", "rounded_layers"),
    [("symmetric", "", ""), ("offset", "", ""), ("symmetric", "self_attn", "mlp")],
)
def test_pruned_and_rounded_layers_equal_those_of_two_runs(
    make: Make,
    toy: Toy,
    calibration: Tensor,
    tmp_path: Path,
    grid: str,
    pruned_layers: str,
    rounded_layers: str,
) -> None:
    """With names of layers: those are only pruned, or only rounded."""
    ids, live = calibration[:12], LiveModel(make("float32", grid=grid))
    formats, both = dict[str, str](), not pruned_layers
    for name in live.dense.in_blocks:
        formats[name] = "2:4+int4-g32" if both else "2:4" if pruned_layers in name else "int4-g32"
    excluded = ({}, {}) if both else ({"exclude": "*mlp*"}, {"exclude": "*self_attn*"})
    fields = {"pattern": "2:4", "base": "sparsegpt", **excluded[0]}
    sparse = pruned(toy(), ids, tmp_path / "1", "float32", **fields)
    after = read(all_linears(sparse))
    fields = {"bits": 4, "group_size": 32, "stages": "gptq", "grid": grid, **excluded[1]}
    qat = begun(sparse, tmp_path / "2", ids, keep_zeros=both and grid != "offset", **fields)
    finished(qat)
    live.apply(formats, "sparsegpt", "gptq")
    assert len([*live.refine()]) == 2 * live.dense.blocks
    expected = {name: qat.run.weight("gptq", x) for name, x in qat.run.linears.items()}
    assert same(live, after | expected)


def test_other_layers_do_not_change(dense: DenseModel) -> None:
    live = LiveModel(dense)
    first, *other_layers = dense.in_blocks
    live.apply({first: "50%"}, "sparsegpt")
    before = {name: live.weight(name) for name in other_layers}
    assert len([*live.refine()]) == 1  # refinement ends after the last refined block
    assert same(live, before) and live.origins[first] == "refined"
    live.apply({}, "alps")
    assert live.origins[first] == "instant"  # another pruner made it


PERCENT = st.integers(1, 9999).map(lambda n: f"{n / 100}%")
GROUPS = st.sampled_from(["1:2", "2:4", "3:4", "4:8", "7:8", "5:16", "20:48"])


@given(
    st.integers(0, 2**32),
    st.integers(1, 5),
    st.sampled_from([48, 240, 624]),
    PERCENT | GROUPS,
    st.booleans(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.sampled_from([2, 30, 10**6]),
)
def test_masks_equal_those_of_the_pruners(
    seed: int, rows: int, columns: int, text: str, wanda: bool, dtype: torch.dtype, values: int
) -> None:
    random, pattern = torch.Generator().manual_seed(seed), Pattern.parse(text)
    W = (torch.randint(-values, values + 1, (rows, columns), generator=random) / values).to(dtype)
    energy = torch.randint(0, 4, (columns,), generator=random).float()
    scores = WeightScores(W, energy.sqrt() if wanda else None)
    mask = rank_mask(rank_table(scores, pattern.group), scores, pattern)
    pruner = PRUNERS["wanda" if wanda else "magnitude"]
    expected = pruner.prune(W.float(), InputStatistics(energy=energy), pattern, 0.01)
    assert torch.equal(masked(W, mask).float(), expected)
    assert int(mask.sum()) == pattern_keeps(pattern, W.shape, wanda)


def pattern_keeps(pattern: Pattern, shape: torch.Size, by_row: bool) -> int:
    rows, n = shape if by_row else (1, shape.numel())
    if pattern.structured:
        return shape.numel() // pattern.group * pattern.keep
    return rows * (n - int(n * pattern.drop + 1e-6))


def test_tables_stay_within_their_memory_limit() -> None:
    tables, calls = TableCache(100), list[str]()

    def get(key: str, size: int = 40) -> None:
        tables.get(key, lambda: calls.append(key) or torch.zeros(size, dtype=torch.uint8))

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert calls == ["a", "b", "c", "b"] and tables.nbytes == 80
    get("large", 500)
    assert tables.nbytes == 500 and tables.find("a") is None
