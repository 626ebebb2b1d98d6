"""Tests of the registry of kinds: discovery, lazy imports and plugins."""

import inspect
from pathlib import Path

import pytest

import jobs
from backend.errors import ConfigError
from backend.options import Options, option
from jobs.kind import Kind, get_kind, kinds, load_work


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
        get_kind("none")
    with pytest.raises(ConfigError, match="Choose: SDS, SDS and its control"):
        get_kind("sds").preset("none such")


class Baking(Options):
    temperature: int = option(180, "Heat", ge=20, unit="degrees", advanced=True)
    """Of the oven,
    not of the room."""
    bread: str = "rye"


class Rolls(Baking):
    """A config that inherits all its fields."""


def test_the_text_below_an_option_is_its_description_in_one_line() -> None:
    heat = Rolls.model_fields["temperature"]
    assert heat.description == "Of the oven, not of the room."
    assert heat.json_schema_extra == {"unit": "degrees", "advanced": True}
    assert Rolls.model_json_schema()["properties"]["temperature"]["description"] == heat.description
    assert Rolls.model_fields["bread"].description is None
