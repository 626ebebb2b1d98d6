"""Kinds are found by their folders, name their work without importing it, and learn of plugins."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jobs
from backend.errors import ConfigError
from backend.options import Options, option
from jobs.kind import Kind, kind_named, kinds, load_work


def test_every_folder_with_a_kind_is_found_in_its_order() -> None:
    folders = {file.parent.name for file in Path(jobs.__path__[0]).glob("*/kind.py")}
    built_in = [k for k in kinds().values() if k.run.startswith("jobs.")]
    assert {kind.run.split(".")[1] for kind in built_in} == folders
    assert [kind.order for kind in built_in] == sorted(kind.order for kind in built_in)


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.name)
def test_the_work_of_every_kind_can_be_loaded(kind: Kind) -> None:
    assert [*inspect.signature(load_work(kind.run)).parameters] == ["config", "context"]


def test_an_unknown_kind_or_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="Choose: sds, dlqat"):
        kind_named("none")
    with pytest.raises(ConfigError, match="Choose: SDS and its control"):
        kind_named("sds").preset("none such")


QUANTIZER = """
import sys
from backend.models.sources.catalogue import inspect
from jobs.dlqat.config import DLQATJob
from jobs.dlqat.estimate import layer_weights, planned_layers
from jobs.kind import kind_named
kind = kind_named("dlqat")
assert kind.stages["toy-awq"] == "Toy AWQ"
assert "toy-awq" in DLQATJob.model_json_schema()["properties"]["keep"]["enum"]
config = DLQATJob(
    model="toy", stages=["rtn", "toy-awq"], keep="toy-awq", space="tight", start="rounded",
)
needs = kind.requirements(config)
facts = inspect("toy")
layers = planned_layers(needs.plan, facts)
tokens = config.segments * min(512, facts.context)
assert needs.flops["make toy-awq"] == (60 + 4 * tokens) * layer_weights(layers)
auto = DLQATJob(**config.model_dump() | {"keep": "auto"})
assert auto.candidates == ["rtn", "toy-awq"]
assert "torch" not in sys.modules
"""

PRUNER = """
import sys
from backend.models.sources.catalogue import inspect
from dataclasses import replace
from backend.pruning.plan import pruning_plan
from jobs.sds.config import SDSJob
from jobs.sds.estimate import disk_space
facts = replace(inspect("toy"), dtype="bfloat16")
configs = {base: SDSJob(model="toy", base=base) for base in ("leftmost", "wanda", "sparsegpt")}
sizes = {base: disk_space(config, pruning_plan(config, facts.linears), facts).bytes
         for base, config in configs.items()}
assert sizes["leftmost"] == sizes["wanda"] == sizes["sparsegpt"]
assert "torch" not in sys.modules
"""


def run(script: str, plugin: str) -> None:
    env = os.environ | {"SLIMSCOPE_PLUGINS": json.dumps([f"tests.plugins.{plugin}"])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_quantizer_becomes_a_stage_that_is_costed_and_exported() -> None:
    run(QUANTIZER, "quantizer")


def test_a_stage_takes_the_disk_of_the_model_whatever_the_pruner() -> None:
    run(PRUNER, "pruner")


class Baking(Options):
    temperature: int = option(180, "Heat", ge=20, unit="degrees", advanced=True)
    """Of the oven,
    not of the room."""
    bread: str = "rye"


class Rolls(Baking):
    """Says nothing of the heat itself."""


def test_the_text_below_an_option_is_its_description_in_one_line() -> None:
    heat = Rolls.model_fields["temperature"]
    assert heat.description == "Of the oven, not of the room."
    assert heat.json_schema_extra == {"unit": "degrees", "advanced": True}
    assert Rolls.model_json_schema()["properties"]["temperature"]["description"] == heat.description
    assert Rolls.model_fields["bread"].description is None
