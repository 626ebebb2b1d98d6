"""A drafter in a folder: what is stored, and the bases it refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.checkpoints import Checkpoints
from backend.decoding.target_model import TargetModel
from backend.drafters.checkpoint import CONFIG, WEIGHTS, Amphista, BaseFingerprint, pack
from backend.drafters.config import ARMS
from backend.errors import ConfigError, NotFoundError
from tests.drafters.toys import ARCHITECTURES, all_logits, base, built, drafter_of, random_ids

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
def test_what_is_loaded_is_what_was_saved(arm: str, tmp_path: Path) -> None:
    saved, target = stored(tmp_path, **ARMS[arm]), base("grouped")
    loaded = Amphista.load(tmp_path)
    assert loaded.arm == arm and loaded.growth == GROWTH and loaded.context == 40
    assert (loaded.base, loaded.figures, loaded.training) == (
        saved.base, saved.figures, saved.training,
    )  # fmt: skip
    one, other = saved.bind(target), loaded.bind(target)
    ids = random_ids(target, 12)
    hidden, embedded = target.hidden(ids[None])[:, :-1], target.embed(ids[None, 1:])
    assert torch.equal(all_logits(one, hidden, embedded), all_logits(other, hidden, embedded))
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_the_folder_holds_the_drafter_alone(tmp_path: Path) -> None:
    saved = stored(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    count = sum(tensor.numel() for tensor in load_file(tmp_path / WEIGHTS).values())
    drafter, target = saved.bind(base("grouped")), base("grouped")
    assert count == drafter.parameter_count() + 2 * target.width + 1 + target.vocabulary
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["base"]["name"] == "grouped" and len(config["base"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("qwen2", "architecture LlamaForCausalLM"), ("wide", "width 32; this one has 64"),
        ("words", "vocabulary 128; this one has 256"), ("deep", "layers 3; this one has 4"),
        ("trained", "sha256"),
    ],
)  # fmt: skip
def test_another_base_is_refused(tmp_path: Path, other: str, said: str) -> None:
    saved, grouped = stored(tmp_path), ARCHITECTURES["grouped"].to_dict()
    changes = {"wide": {"hidden_size": 64, "head_dim": 16}, "words": {"vocab_size": 256},
               "deep": {"num_hidden_layers": 4}}  # fmt: skip
    if other == "qwen2":
        target = base("qwen2")
    else:
        config = type(ARCHITECTURES["grouped"])(**{**grouped, **changes.get(other, {})})
        target = TargetModel(built(config, seed=1))
    with pytest.raises(ConfigError, match=said) as refused:
        saved.bind(target)
    assert refused.value.field == "drafter" and "train one" in refused.value.do


def damage(folder: Path, how: str) -> None:
    config = json.loads((folder / CONFIG).read_text())
    if how == "no config":
        (folder / CONFIG).unlink()
    elif how == "cut weights":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])
    elif how == "not finite":
        weights = load_file(folder / WEIGHTS)
        next(W for W in weights.values() if W.is_floating_point()).view(-1)[0] = float("inf")
        save_file(weights, folder / WEIGHTS)
    elif how == "other format":
        (folder / CONFIG).write_text(json.dumps({**config, "format": "slimscope-drafter-9"}))
    elif how == "unknown field":
        config["drafter"]["speed"] = 9
        (folder / CONFIG).write_text(json.dumps(config))
    else:
        (folder / CONFIG).write_text("{")


@pytest.mark.parametrize(
    "how", ["no config", "cut weights", "not finite", "other format", "unknown field", "no json"]
)
def test_a_damaged_folder_is_refused(tmp_path: Path, how: str) -> None:
    stored(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(NotFoundError, match="no drafter in") as refused:
        Amphista.load(tmp_path)
    assert refused.value.field == "drafter"


def test_a_drafter_that_was_changed_is_refused(tmp_path: Path) -> None:
    with Checkpoints(tmp_path).write("drafter") as draft:
        stored(draft)
    weights = tmp_path / "drafter" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(NotFoundError, match=f"{WEIGHTS} has changed"):
        Amphista.load(tmp_path / "drafter")
