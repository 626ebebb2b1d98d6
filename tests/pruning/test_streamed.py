"""SDS on a streamed model is equal bit for bit, in memory independent of the model size; a pruned
model keeps the dtype of its base."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.models import loading
from backend.models.blocks import block_linears
from backend.models.loading import load, weights_hash
from backend.models.saving import save
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.stage_store import SDSStageStore
from tests.pruning.stages import prune, stage_hashes

CONFIGS = {
    "gpt2": GPT2Config(
        vocab_size=96,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    ),
    "opt": OPTConfig(
        vocab_size=96,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
        init_std=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
Make = Callable[[str, bool], PreTrainedModel]


def config(**fields: object) -> SDSConfig:
    return SDSConfig.model_validate({"precision": "float32", "adjust_steps": 5, **fields})


@pytest.fixture
def make(tmp_path_factory) -> Make:
    """Load the toy model or a small model of another family, in memory or streamed."""
    folder = tmp_path_factory.mktemp("model")

    def build(family: str, streamed: bool) -> PreTrainedModel:
        if family == "toy":
            return load("toy", streamed=streamed).model
        if not any(folder.iterdir()):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(CONFIGS[family]).save_pretrained(folder)
        read = loading._load_streamed if streamed else loading._load_full
        return read(folder, torch.float32, torch.device("cpu"))[0].eval()

    return build


def outcome(model: PreTrainedModel, ids: Tensor, options: SDSConfig, folder: Path) -> tuple:
    """Hash of every stage, the kept stage, and all figures except times."""
    result = prune(model, ids, options, folder)
    last_hash = weights_hash(model)
    hashes = stage_hashes(model, folder, options)
    assert hashes[result.kept] == last_hash and len(set(hashes.values())) == len(hashes)
    return hashes, result.kept, result.heldout, result.errors, result.zero_share


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("toy", {"reconstruct": 2}),
        ("toy", {"precision": "bfloat16", "activations": "disk", "base": "sparsegpt"}),
        ("toy", {"pattern": "50%", "allocation": "owl"}),
        ("gpt2", {"base": "sparsegpt", "reconstruct": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_streamed_run_is_equal_bit_for_bit(
    family: str, fields: dict, make: Make, calibration: Tensor, tmp_path: Path
) -> None:
    ids = calibration[:12, :48] % 96 if family != "toy" else calibration[:12]
    in_memory = outcome(make(family, False), ids, config(**fields), tmp_path / "whole")
    streamed = outcome(make(family, True), ids, config(**fields), tmp_path / "streamed")
    assert streamed == in_memory


@pytest.mark.usefixtures("two_threads")
def test_parallel_batches_give_the_same_result(
    make: Make, calibration: Tensor, tmp_path: Path
) -> None:
    ids, options = calibration[:8], config(batch=8, base="sparsegpt", until="first")
    in_memory = outcome(make("toy", False), ids, options, tmp_path / "whole")
    assert outcome(make("toy", True), ids, options, tmp_path / "streamed") == in_memory


def test_hidden_states_are_stored_where_the_config_says(
    toy, calibration: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    monkeypatch.setattr(
        "backend.pruning.sds.batches_in", lambda folder: folders.append(folder) or list
    )
    for n, (choice, free) in enumerate(
        [("disk", 10**12), ("memory", 1), ("auto", 1), ("auto", 10**12)]
    ):
        monkeypatch.setattr("backend.pruning.sds.free_memory", lambda _, free=free: free)
        options = config(activations=choice, until="first", control=False)
        prune(toy(), calibration[:2], options, tmp_path / str(n), heldout_share=0)
    assert folders == [tmp_path / "0", None, tmp_path / "2", None]


def test_weights_that_fit_in_16_bits_are_stored_in_16_bits(
    toy, calibration: Tensor, tmp_path: Path
) -> None:
    """The weights of the toy model are float16, so its dense and masked stages take half the
    space."""
    model = toy()
    dense = {m: x.read() for m, x in block_linears(model, 1).items()}
    prune(model, calibration[:8], config(), tmp_path)
    sizes = {f.stem: f.stat().st_size for f in (tmp_path / "first-0001").glob("*.safetensors")}
    assert 1.9 < sizes["redense"] / sizes["dense"] < 2.1
    assert sizes["first"] == sizes["dense"]
    stored = SDSStageStore(Checkpoints(tmp_path)).weights(SDSStage.DENSE, 1)
    assert all(torch.equal(stored[m], W) and stored[m].dtype == W.dtype for m, W in dense.items())


@pytest.mark.parametrize(("dtype", "pruner"), [("bfloat16", "sparsegpt"), ("float16", "wanda")])
def test_saved_weights_are_the_measured_weights(
    toy, calibration: Tensor, tmp_path: Path, dtype: str, pruner: str
) -> None:
    stored, model = getattr(torch, dtype), toy()
    for parameter in model.parameters():  # dtype of a 16-bit checkpoint on the CPU
        parameter.data = parameter.data.to(stored).float()
    model.get_parameter("model.norm.weight").data[0] = 1 + 2**-20  # a norm kept in float32
    config = SDSConfig(base=pruner, redense_steps=3, adjust_steps=3, control=True)
    checkpoints = Checkpoints(tmp_path / "run")
    ids = calibration[:8, :64]
    result = prune(model, ids, config, checkpoints, stored_dtype=stored, heldout_share=0)
    store = SDSStageStore(checkpoints)
    for stage in (SDSStage.FIRST, SDSStage.CONTROL, SDSStage.SECOND, SDSStage.SDS):
        for W in store.weights(stage, 1).values():
            assert torch.equal(W.to(stored).float(), W)
    folder = tmp_path / "model"
    save(model, load("toy").tokenizer, folder, "", stored)
    saved = load_file(folder / "model.safetensors")
    linears = [W for name, W in saved.items() if "_proj" in name]
    assert {W.dtype for W in linears} == {stored}
    assert saved["model.norm.weight"].dtype == torch.float32
    zeros = sum(int((W == 0).sum()) for W in linears) / sum(W.numel() for W in linears)
    assert zeros == pytest.approx(result.zero_share[result.kept])
    assert all((W.view(-1, 4) != 0).sum(1).max() <= 2 for W in linears)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(plain(input_ids=ids[:1]).logits, model(input_ids=ids[:1]).logits)
