"""A saved drafter is what docs/drafter-format.md says: fields, tensors, shapes, dtypes."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backend.drafters.checkpoint import CONFIG, FORMAT, WEIGHTS, BaseFingerprint, pack
from backend.drafters.config import DrafterConfig
from tests.drafters.toys import base, drafter_of

PAGE = Path(__file__).parents[2] / "docs" / "drafter-format.md"
HEADS, LAYERS = 3, 2
SHAPES = {
    "whole": {}, "encoder only": {"ablation": "encoder only"},
    "no sampled token": {"ablation": "no sampled token"}, "Medusa": {"architecture": "medusa"},
}  # fmt: skip


def rows(head: str) -> list[list[str]]:
    """The cells of the table of the page that begins with this head."""
    lines = PAGE.read_text(encoding="utf-8").split(f"| {head} |", 1)[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()[2:]]


def names(head: str) -> set[str]:
    return {row[0].strip("`") for row in rows(head)}


def expected(config: DrafterConfig, width: int, vocabulary: int) -> dict[str, list[int]]:
    """Tensor -> shape, by the table; those of the target model are left out."""
    sizes = {"v": vocabulary, "d": width, "K": config.heads, "R": 1}
    token = config.ablation != "no sampled token"
    holds = {
        "always": True, "N < S": config.adaptation_layers > 0,
        "S > 0": config.adaptation_layers > 0, "sampled token": token,
        "no sampled token": not token,
        "block": config.architecture == "amphista" and config.ablation != "adaptation only",
    }  # fmt: skip
    found = {}
    for name, shape, there, _ in rows("tensor"):
        if not all(holds[each.strip()] for each in there.split(",")) or "*" in name:
            continue
        dims = [re.fullmatch(r"(\d*)([vdKR]?)", part.strip()) for part in shape[1:-1].split(",")]
        size = [int(d[1] or 1) * sizes.get(d[2], 1) for d in dims if d]
        for number in range(config.adaptation_layers if "N" in name else 1):
            found[name.strip("`").replace("N", str(number))] = size
    return found


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_a_saved_drafter_is_as_specified(fields: dict[str, object], tmp_path: Path) -> None:
    target = base("grouped")
    drafter = drafter_of(target, heads=HEADS, **fields)
    growth = [((0, 1), 0.25)]
    pack(drafter, BaseFingerprint.of(target), growth, {"top1": [0.5]}, {}, 40).save(tmp_path)
    saved = load_file(tmp_path / WEIGHTS)
    own = {name: list(t.shape) for name, t in saved.items()
           if not re.match(r"layers\.\d+\.block\.|norm\.", name)}  # fmt: skip
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
        "vocabulary": [v], "hidden_scale": [d], "stream_scale": [d], "token_scale": [1],
        "fusions.0.weight": [d, 2 * d],
    }  # fmt: skip
    for of, name, shape, there, _ in rows("of"):
        for N in range(HEADS if there == "N < K" else 1):
            dims = re.sub(r"\) d", ") * d", shape[1:-1].replace("−", "-")).split(",")
            size = [eval(dim, {"d": d, "K": HEADS, "N": N}) for dim in dims]
            if of == f"`{architecture}`":
                wanted[name.strip("`").replace("N", str(N))] = size
    saved = {name: list(tensor.shape) for name, tensor in drafter.state_dict().items()}
    own = {n: s for n, s in saved.items() if not re.match(r"layers\.0\.block\.|norm\.", n)}
    assert own == wanted
