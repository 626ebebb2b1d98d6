"""Drafter folders: the format of docs/drafter-format.md, and refusals."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.checkpoints import MANIFEST, Checkpoints
from backend.decoding.target_model import TargetModel
from backend.drafters.checkpoint import CONFIG, FORMAT, WEIGHTS, Amphista, BaseFingerprint, pack
from backend.drafters.config import ARMS, DrafterConfig
from backend.errors import ConfigError, NotFoundError
from tests.drafters.toys import ARCHITECTURES, all_logits, base, built, drafter_of, random_ids
from tests.refusals import refusal

GROWTH = [((0,), 0.5), ((0, 0), 0.25), ((1,), 0.125)]


def stored(folder: Path, name: str = "grouped", **fields: object) -> Amphista:
    drafter = drafter_of(base(name), scale=0.3, **fields)
    saved = pack(
        drafter, BaseFingerprint.of(base(name), name), GROWTH, {"top1": [0.5]}, {"steps": 3}, 40
    )
    saved.save(folder)
    return saved


@pytest.mark.parametrize("arm", ARMS)
@torch.no_grad()
def test_a_saved_drafter_is_loaded(arm: str, tmp_path: Path) -> None:
    saved, target = stored(tmp_path, **ARMS[arm]), base("grouped")
    loaded = Amphista.load(tmp_path)
    assert loaded.arm == arm and loaded.growth == GROWTH and loaded.context == 40
    assert (loaded.base, loaded.figures, loaded.training) == (
        saved.base,
        saved.figures,
        saved.training,
    )
    one, other = saved.bind(target), loaded.bind(target)
    ids = random_ids(target, 12)
    hidden, embedded = target.hidden(ids[None])[:, :-1], target.embed(ids[None, 1:])
    assert torch.equal(all_logits(one, hidden, embedded), all_logits(other, hidden, embedded))
    assert not any(parameter.requires_grad for parameter in other.parameters())


def other(**changes: int) -> TargetModel:
    config = type(ARCHITECTURES["grouped"])(**{**ARCHITECTURES["grouped"].to_dict(), **changes})
    return TargetModel(built(config, seed=1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: base("qwen2"), "architecture LlamaForCausalLM"),
        (lambda: other(hidden_size=64, head_dim=16), "width 32; this model has 64"),
        (lambda: other(vocab_size=256), "vocabulary 128; this model has 256"),
        (lambda: other(num_hidden_layers=4), "layers 3; this model has 4"),
        (other, "sha256"),  # of other weights
    ],
)
def test_another_base_is_refused(
    tmp_path: Path, make: Callable[[], TargetModel], said: str
) -> None:
    saved, target = stored(tmp_path), make()
    with refusal("drafter", said, "train a drafter", error=ConfigError):
        saved.bind(target)


def edited(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "cut weights": lambda folder: edited(folder / WEIGHTS, lambda x: x[:100]),
    "no json": lambda folder: edited(folder / CONFIG, lambda _: b"{"),
    "other format": lambda folder: edited(
        folder / CONFIG, lambda x: x.replace(FORMAT.encode(), b"slimscope-drafter-9")
    ),
    "unknown field": lambda folder: edited(
        folder / CONFIG, lambda x: x.replace(b'"heads"', b'"speed": 9, "heads"')
    ),
    "not finite": lambda folder: save_file(
        {name: x * torch.inf for name, x in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS
    ),
    "changed bits": lambda folder: edited(folder / WEIGHTS, lambda x: x[:-1] + b"?"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused(tmp_path: Path, name: str) -> None:
    with Checkpoints(tmp_path).write("drafter") as draft:
        stored(draft)
    folder = tmp_path / "drafter"
    told = f"{WEIGHTS} has changed"
    if name != "changed bits":  # which the manifest tells, as it tells other changes
        (folder / MANIFEST).unlink()
        told = "no drafter in"
    DAMAGES[name](folder)
    with refusal("drafter", told, error=NotFoundError):
        Amphista.load(folder)


PAGE = Path(__file__).parents[2] / "docs" / "drafter-format.md"
HEADS, LAYERS = 3, 2
SHAPES = {
    "whole": {},
    "encoder only": {"ablation": "encoder only"},
    "no sampled token": {"ablation": "no sampled token"},
    "Medusa": {"architecture": "medusa"},
}


def rows(head: str) -> list[list[str]]:
    """Return the cells of the table with this header."""
    lines = PAGE.read_text(encoding="utf-8").split(f"| {head} |", 1)[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()[2:]]


def names(head: str) -> set[str]:
    return {row[0].strip("`") for row in rows(head)}


def expected(config: DrafterConfig, width: int, vocabulary: int) -> dict[str, list[int]]:
    """Map tensors to shapes by the table, without those of the target model."""
    sizes = {"v": vocabulary, "d": width, "K": config.heads, "R": 1}
    token = config.ablation != "no sampled token"
    holds = {
        "always": True,
        "N < S": config.adaptation_layers > 0,
        "S > 0": config.adaptation_layers > 0,
        "sampled token": token,
        "no sampled token": not token,
        "block": config.architecture == "amphista" and config.ablation != "adaptation only",
    }
    result = {}
    for name, shape, there, _ in rows("tensor"):
        if not all(holds[each.strip()] for each in there.split(",")) or "*" in name:
            continue
        dims = [re.fullmatch(r"(\d*)([vdKR]?)", part.strip()) for part in shape[1:-1].split(",")]
        size = [int(d[1] or 1) * sizes.get(d[2], 1) for d in dims if d]
        for number in range(config.adaptation_layers if "N" in name else 1):
            result[name.strip("`").replace("N", str(number))] = size
    return result


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_a_saved_drafter_is_as_specified(fields: dict[str, object], tmp_path: Path) -> None:
    target = base("grouped")
    drafter = drafter_of(target, heads=HEADS, **fields)
    growth = [((0, 1), 0.25)]
    pack(drafter, BaseFingerprint.of(target), growth, {"top1": [0.5]}, {}, 40).save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    saved = load_file(tmp_path / WEIGHTS)
    own = {
        name: list(t.shape)
        for name, t in saved.items()
        if not re.match(r"layers\.\d+\.block\.|norm\.", name)
    }
    assert own == expected(drafter.config, target.width, target.vocabulary)
    for name, tensor in saved.items():
        assert tensor.dtype == (torch.int64 if name == "vocabulary" else torch.float32)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert set(config) == names("field") and set(config["base"]) == names("field of `base`")
    assert config["format"] == FORMAT and f"`{FORMAT}`" in PAGE.read_text(encoding="utf-8")
    assert set(config["drafter"]) == set(DrafterConfig.model_fields)
    block = {name.split(".block.")[1] for name in saved if name.startswith("layers.1.block.")}
    last = dict(target.model.model.layers[-1].named_parameters())
    assert block == (set(last) if drafter.config.adaptation_layers else set())


@pytest.mark.parametrize("architecture", ["eagle", "hydra"])
def test_the_tensors_of_the_other_architectures_are_as_specified(architecture: str) -> None:
    target = base("grouped")
    d, v = target.width, target.vocabulary
    drafter = drafter_of(target, heads=HEADS, architecture=architecture)
    wanted = {
        "vocabulary": [v],
        "hidden_scale": [d],
        "stream_scale": [d],
        "token_scale": [1],
        "fusions.0.weight": [d, 2 * d],
    }
    for of, name, shape, there, _ in rows("of"):
        for N in range(HEADS if there == "N < K" else 1):
            dims = re.sub(r"\) d", ") * d", shape[1:-1].replace("−", "-")).split(",")
            size = [eval(dim, {"d": d, "K": HEADS, "N": N}) for dim in dims]
            if of == f"`{architecture}`":
                wanted[name.strip("`").replace("N", str(N))] = size
    saved = {name: list(tensor.shape) for name, tensor in drafter.state_dict().items()}
    own = {n: s for n, s in saved.items() if not re.match(r"layers\.0\.block\.|norm\.", n)}
    assert own == wanted
