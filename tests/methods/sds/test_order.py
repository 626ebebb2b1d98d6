"""Pruning in the order in which layers read each other, and stopping after the first pruning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, PhiConfig

from backend.checkpoints import Checkpoints
from backend.errors import NotFoundError
from backend.methods.calibration import InputStatistics
from backend.methods.sds.block_work import BlockWork, SDSRun
from backend.methods.sds.config import SDSConfig, SDSStage
from backend.methods.sds.heldout import choose, verdict
from backend.methods.sds.pattern import Pattern
from backend.methods.sds.pipeline import install, run_sds
from backend.methods.sds.pruners.registry import PRUNERS
from backend.methods.sds.stage_store import SDSStageStore
from backend.models.block_forward import open_stream
from backend.models.blocks import block_linears
from backend.reporter import SilentReporter

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 2}  # fmt: skip
LLAMA_ORDER = [
    {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    {"self_attn.o_proj"},
    {"mlp.gate_proj", "mlp.up_proj"},
    {"mlp.down_proj"},
]
ORDERS = {
    "gpt2": [{"attn.c_attn"}, {"attn.c_proj"}, {"mlp.c_fc"}, {"mlp.c_proj"}],
    "opt": [
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
        {"self_attn.out_proj"},
        {"fc1"},
        {"fc2"},
    ],
    "phi": [  # attention and MLP read the same
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"},
        {"self_attn.dense"},
        {"mlp.fc2"},
    ],
}
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "phi": PhiConfig(**SIZES, intermediate_size=48, num_key_value_heads=4),
}


def config(**fields: object) -> SDSConfig:
    return SDSConfig.model_validate({"precision": "float32", "adjust_steps": 5, **fields})


def work_on(model, ids: Tensor, folder: Path, chosen: SDSConfig) -> tuple[BlockWork, list[Tensor]]:
    linears = [x for b in range(2) for x in block_linears(model, b).values()]
    patterns = {x.name: chosen.pattern for x in linears}
    store = SDSStageStore(Checkpoints(folder))
    run = SDSRun(model, ids, chosen, torch.float32, store, SilentReporter(), patterns, 1)
    stream = open_stream(model, ids, 3)
    dense = {m: x.read() for m, x in block_linears(model, 0).items()}
    return BlockWork(run, stream, 0, dense), stream.hidden


@pytest.mark.parametrize("family", ["toy", *ORDERS])
def test_layers_are_grouped_by_what_they_read_in_order(
    family: str, toy, calibration: Tensor, tmp_path: Path
) -> None:
    model = toy() if family == "toy" else AutoModelForCausalLM.from_config(CONFIGS[family])
    work, hidden = work_on(model, calibration[:5, :32] % 96, tmp_path, config())
    groups = [set(group) for group in work.input_groups(hidden)]
    expected = LLAMA_ORDER if family == "toy" else ORDERS[family]
    # Branches that do not read each other may run in either order.
    assert groups == expected or (family == "phi" and sorted(groups, key=sorted) == sorted(
        expected, key=sorted))  # fmt: skip
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("base", ["wanda", "sparsegpt"])
@torch.no_grad()
def test_later_layers_read_what_pruned_ones_put_out(
    base: str, toy, calibration: Tensor, tmp_path: Path
) -> None:
    """Against whole forward passes of the model, once for each group."""
    ids, pattern = calibration[:6], Pattern.parse("2:4")
    chosen = config(base=base, order="sub-block", until="first", control=False, holdout=0, batch=4)
    run_sds(model := toy(), ids, chosen, Checkpoints(tmp_path), SilentReporter())
    slow = toy()
    for block in range(3):
        linears = block_linears(slow, block)
        for group in LLAMA_ORDER:
            seen: dict[str, Tensor] = {}
            handles = [
                linears[m].layer.register_forward_pre_hook(
                    lambda _, args, m=m, seen=seen: seen.update({m: args[0].flatten(0, 1)})
                )
                for m in group
            ]
            slow(input_ids=ids, use_cache=False)
            for handle in handles:
                handle.remove()
            for m in group:
                H = seen[m].T @ seen[m] / len(seen[m])
                inputs = InputStatistics(len(seen[m]), H.diagonal(), H)
                linears[m].write(PRUNERS[base].prune(linears[m].read(), inputs, pattern, 0.01))
        for m, linear in block_linears(model, block).items():
            W, expected = linear.read(), linears[m].read()
            near = torch.isclose(W, expected, rtol=1e-3, atol=1e-3 * expected.std().item())
            assert near.float().mean() > 0.99, (block, m)


def test_the_order_changes_the_result_but_not_the_pattern(
    toy, calibration: Tensor, tmp_path: Path
) -> None:
    found = {}
    for order in ("block", "sub-block"):
        model = toy()
        run_sds(model, calibration[:8], config(order=order), Checkpoints(tmp_path / order),
                SilentReporter())  # fmt: skip
        found[order] = block_linears(model, 0)["mlp.down_proj"].read()
        assert ((found[order].view(-1, 4) != 0).sum(1) <= 2).all()
    assert not torch.equal(found["block"], found["sub-block"])


@pytest.mark.parametrize("control", [True, False])
def test_a_run_may_end_with_the_first_pruning(
    control: bool, toy, calibration: Tensor, tmp_path: Path, recorder
) -> None:
    told, chosen = recorder(), config(until="first", control=control, inputs="kd")
    model = toy()
    result = run_sds(model, calibration[:16], chosen, Checkpoints(tmp_path / "first"), told)
    made = [SDSStage.DENSE, SDSStage.FIRST] + [SDSStage.CONTROL] * control
    assert chosen.stages == made and list(result.heldout) == made
    assert {s.stage for s in told.snapshots} == set(made)
    assert result.kept in made[1:] and told.progressed[-1][0] == told.progressed[-1][1]
    with pytest.raises(NotFoundError):
        install(model, Checkpoints(tmp_path / "first"), SDSStage.SDS)
    whole = toy()
    run_sds(whole, calibration[:16], config(), Checkpoints(tmp_path / "sds"), SilentReporter())
    for stage in made:
        weights = []
        for one, folder in ((model, "first"), (whole, "sds")):
            install(one, Checkpoints(tmp_path / folder), stage)
            weights.append([x.read() for b in range(3) for x in block_linears(one, b).values()])
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_of_the_first_pruning_too_the_lower_loss_is_kept() -> None:
    chosen, losses = config(until="first"), {SDSStage.FIRST: 2.0, SDSStage.CONTROL: 2.5}
    assert choose(losses, chosen) == SDSStage.FIRST
    assert "discarded" in verdict(losses, SDSStage.FIRST, chosen)[0]
    losses[SDSStage.CONTROL] = 1.0
    assert choose(losses, chosen) == SDSStage.CONTROL
    assert verdict(losses, SDSStage.CONTROL, chosen) == []
    assert choose({}, config(until="first", control=False)) == SDSStage.FIRST
