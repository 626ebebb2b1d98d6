"""A form drawn from a config: every field once, values both ways, messages where they belong."""

from typing import Any, Literal

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from backend.errors import ConfigError, SlimscopeError
from jobs.dlqat.kind import DLQATJob
from jobs.fields.text import TextConfig
from jobs.kind import JobConfig
from jobs.sds.kind import SDSJob
from jobs.submit import validate_config
from ui.widgets.config_form import ConfigForm, advanced, field_error, sections, title

HOSTILE = "<img src=x onerror=alert(1)>${1+1}"


class Own(BaseModel):
    """What a method may ask."""

    mode: Literal["a", "b"] = Field("a", title="Mode")
    many: Literal["a long option", "another long option"] = "a long option"
    rate: float = Field(0.5, gt=0, le=1, title="Rate", json_schema_extra={"unit": "per step"})
    size: int = Field(4, ge=1, description="How many.")
    deep: bool = Field(True, json_schema_extra={"advanced": True})
    pattern: str = Field("2:4", examples=["2:4", "4:8"])
    note: str = ""


class Whole(Own, TextConfig, JobConfig):
    """With what all kinds share."""

    model: str = "toy"


@pytest.fixture(scope="module")
def form() -> ConfigForm:
    with gr.Blocks():
        return ConfigForm(SDSJob, {"model": lambda: [("Toy", "toy"), ("Other", "other")]})


def test_every_field_has_one_input_that_suits_its_type_with_help_unit_and_default() -> None:
    with gr.Blocks():
        form = ConfigForm(Own)
    kinds = {name: type(field.input) for name, field in form.fields.items()}
    assert kinds == {
        "mode": gr.Radio,
        "many": gr.Dropdown,
        "rate": gr.Number,
        "size": gr.Number,
        "deep": gr.Checkbox,
        "pattern": gr.Dropdown,
        "note": gr.Textbox,
    }
    assert len({field.input.elem_id for field in form.fields.values()}) == len(kinds)
    with gr.Blocks():
        form = ConfigForm(Own)
    assert form.fields["rate"].input.label == "Rate (per step)"
    assert form.fields["size"].input.info == "How many."
    assert form.fields["pattern"].input.choices == [("2:4", "2:4"), ("4:8", "4:8")]
    assert form.fields["pattern"].input.allow_custom_value
    assert form.values([field.input.value for field in form.fields.values()]) == {
        name: info.default for name, info in Own.model_fields.items()
    }
    assert title("segments", TextConfig.model_fields["segments"]) == "Calibration segments"
    assert title("context", TextConfig.model_fields["context"]).endswith("(tokens)")


def test_several_of_a_fixed_list_are_chosen_and_come_back_in_its_order() -> None:
    with gr.Blocks():
        form = ConfigForm(DLQATJob)
    field = form.fields["stages"].input
    assert isinstance(field, gr.Dropdown) and field.multiselect and not field.allow_custom_value
    assert field.value == ["gptq", "dlqat"]
    assert ("block-wise", "block-wise") in field.choices
    given = [["lora", "rtn"] if f is field else f.value for f in form.inputs]
    values = form.values(given) | {"model": "toy"}
    config = validate_config("dlqat", values)
    assert config.model_dump(mode="json")["stages"] == "rtn, lora"
    shown = form.show(config.model_dump(mode="json"), ["stages"])
    assert shown[field]["value"] == ["rtn", "lora"]


def test_choices_are_several_of_a_fields_own_and_asked_for_anew() -> None:
    class Sides(BaseModel):
        sides: str = Field("toy", json_schema_extra={"many": True})

    with gr.Blocks():
        form = ConfigForm(Sides, {"sides": lambda: [("None", ""), ("Toy", "toy"), ("B", "b")]})
    chosen = form.fields["sides"].input
    assert isinstance(chosen, gr.Dropdown) and chosen.multiselect and chosen.value == ["toy"]
    assert [value for _, value in chosen.choices] == ["toy", "b"]  # no choice at all is none
    assert form.values([["toy", "b"]]) == {"sides": "toy, b"}
    assert form.show({"sides": "b,toy"})[chosen]["value"] == ["b", "toy"]
    assert form.initial_updates({"sides": ""})[chosen]["value"] == []

    class Two(Own):
        first: str = Field("", json_schema_extra={"choices": "model"})
        model: str = Field("", json_schema_extra={"choices": "saved"})

    with gr.Blocks():
        form = ConfigForm(Two, {"model": lambda: [("Toy", "toy")], "saved": lambda: [("A", "a")]})
    assert form.fields["first"].input.choices == [("Toy", "toy")]
    assert form.fields["model"].input.choices == [("A", "a")]
    offered = [("Toy", "toy")]
    with gr.Blocks():
        form = ConfigForm(Whole, {"model": lambda: list(offered)})
    offered.append(("New", "new"))
    fresh = form.initial_updates({})[form.fields["model"].input]
    assert fresh["choices"] == [("Toy", "toy"), ("New", "new")]
    assert "value" not in fresh
    clone = form.initial_updates({"size": 9})  # the model may have been chosen meanwhile
    assert "value" not in clone.pop(form.fields["model"].input)
    assert clone == {form.fields["size"].input: gr.update(value=9)}


def test_the_defaults_of_the_inputs_make_the_default_config(form: ConfigForm) -> None:
    values = form.values([component.value for component in form.inputs])
    assert validate_config("sds", values) == SDSJob()
    found = sections(Whole)
    assert list(found) == ["Method", "Text", "Run"] and found["Method"][0] == "model"
    assert "seed" in found["Run"]
    assert sorted(n for names in found.values() for n in names) == sorted(Whole.model_fields)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "segments": st.integers(1, 4096),
            "holdout": st.floats(0, 0.5),
            "control": st.booleans(),
            "pattern": st.sampled_from(["2:4", "50%"]),
            "adjust": st.sampled_from(["soft", "fixed", "off"]),
        },
    )
)
def test_values_that_are_shown_are_read_back(form: ConfigForm, values: dict[str, Any]) -> None:
    updates = form.show(values)
    read = form.values(updates[component]["value"] for component in form.inputs)
    defaults = {name: info.default for name, info in SDSJob.model_fields.items()}
    assert read == defaults | values


def test_a_message_stands_beside_its_field_and_nowhere_else(form: ConfigForm) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config("sds", {"pattern": "5:3"})
    updates = form.show_errors(caught.value)
    shown = {m.elem_id for m, update in updates.items() if update.get("visible")}
    assert shown == {"message-pattern"}
    assert "5:3" in updates[form.fields["pattern"].message]["value"]
    assert form.accordions["Advanced"] not in updates
    assert not any(update.get("visible") for update in form.show_errors(None).values())
    with pytest.raises(ConfigError) as caught:
        validate_config("sds", {"segments": None})
    assert caught.value.field == "segments"


def test_a_warning_stands_beside_its_field_until_that_is_wrong(form: ConfigForm) -> None:
    updates = form.show_errors(None, {"pattern": HOSTILE})
    told = updates[form.fields["pattern"].message]
    assert told["visible"] and 'role="status"' in told["value"] and "<img" not in told["value"]
    updates = form.show_errors(ConfigError("No.", field="pattern"), {"pattern": "Larger."})
    assert "No." in updates[form.fields["pattern"].message]["value"]


def test_all_that_is_wrong_is_said_at_once(
    form: ConfigForm,
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config("sds", {"pattern": "5:3", "segments": 0, "damping": -1.0, "windows": 4})
    assert caught.value.field == "segments"
    updates = form.show_errors(caught.value)
    shown = {m.elem_id for m, update in updates.items() if update.get("visible")}
    assert shown == {"message-pattern", "message-segments", "message-damping"}
    assert updates[form.accordions["Advanced"]]["open"] is True  # damping is inside
    assert advanced(SDSJob.model_fields["damping"])
    updates = form.show_errors(SlimscopeError("No.", field="damping"))
    assert updates[form.accordions["Advanced"]]["open"] is True


def test_what_was_typed_is_shown_in_a_message_but_never_run() -> None:
    html = field_error(SlimscopeError(HOSTILE, HOSTILE, HOSTILE))
    assert "<img" not in html
    assert "${" not in html
    assert 'role="alert"' in html
