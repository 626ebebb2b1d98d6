"""What a kind of job is, and which kinds there are.

A kind is a folder of `jobs`: `kind.py` (a pydantic config: form, command line, API, validation and
stored record at once; what a run needs, and what is refused; the `Kind`), of which long parts lie
beside it in `config.py`, and `run.py` (the work). Adding a kind is adding a
folder. A plugin is one module with `KINDS`. Only a job's own process imports `run.py`; the rest
imports no torch.
"""

import gc
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from backend.errors import ConfigError
from backend.metric_key import MetricKey
from backend.options import Options, Plan, option
from backend.printable import printable
from backend.registry import source_file
from backend.settings import settings
from jobs.estimates import Duration, PhaseWork
from jobs.metrics import PERPLEXITY
from jobs.wording import StageComparison


class JobConfig(Options):
    """Settings of every job."""

    seed: int = option(0, "Seed", ge=0, lt=2**31)
    """Same seed, threads and config give the same result."""
    threads: int = option(0, "CPU threads", ge=0, le=256, advanced=True)
    """0 uses all that are available."""
    device: str = option(
        "auto", "Device", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", advanced=True
    )
    """auto, cpu, cuda or cuda:0. auto takes a GPU when there is one."""

    @field_validator("*", mode="before")
    @classmethod
    def _plain_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Text without control characters; true and false are no numbers."""
        if isinstance(value, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            allowed = {annotation, *get_args(annotation)}
            if allowed & {int, float} and bool not in allowed:
                kind = "int_type" if int in allowed else "float_type"
                raise PydanticCustomError(kind, "It must be a number")
        return printable(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class DiskSpace:
    """Disk a run needs at its peak."""

    bytes: float  # an estimate from above
    contents: str  # what takes it, as in "The hidden states"
    do: str  # what makes it smaller
    field: str  # the config field that does


@dataclass(frozen=True)
class Requirements:
    """What a run needs, by its config alone.

    Attributes:
        title: what people call the model.
        plan: what it does to each layer, where its kind has plans; stored with the run.
        work: of its phases, in their order.
        memory: purpose -> bytes at the peak.
        warnings: risks that do not forbid the run.
        notes: facts about the run that are no risk.
        open_ended: whether some phase has no estimate.
        sizes: bytes of the files it works on (0: not known), and of the one it saves; parameters.
        field_warnings: field -> a risk that does not forbid the run, told beside it.
    """

    title: str
    work: Sequence[PhaseWork]
    memory: Mapping[str, int]
    plan: Plan | None = None
    disk: DiskSpace | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    open_ended: bool = False
    sizes: tuple[int, int, int] | None = None
    field_warnings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Estimate(Requirements, Duration):
    """What a run needs and will cost, shown before it is queued."""

    bytes: int  # expected peak memory


@dataclass(frozen=True)
class StageStyle:
    """How charts draw a stage."""

    color: str  # a name of the palette of `ui.theme`, such as "blue"
    dash: str = "solid"  # of its line, as Plotly names it; tells stages of one color apart
    main: bool = False  # whether the method passes through it; else a control or a side result
    pruned: bool = False  # whether its zeros were chosen, and not what rounding or regrowth left


Values = Mapping[tuple[str, MetricKey], float]  # (stage, metric) -> the figure a run ended with


@dataclass(frozen=True)
class KeyFigure:
    """The one figure that says what a finished run achieved."""

    value: str  # with its unit, such as "45 %"
    label: str  # what it is a figure of; continues the value
    text: str  # a sentence with the figures it comes from


def capitalized(stage: str) -> str:
    """The name of a stage as words: "head-1" is "Head-1"."""
    return stage.replace("_", " ").capitalize()


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Attributes:
        requirements: what a run needs, without torch; raises SlimscopeError with `field` for a
            config that cannot work.
        plan: the class of the plans that `requirements` makes, where it makes any.
        run: "module:function" of the work, imported only by a job's process.
        order: place among the kinds.
        recipes: algorithm -> field values that run it and nothing else; the first are the defaults.
        notes: recipe -> what it does, in a few words.
        presets: effort -> field values that differ from the defaults; none that a recipe sets.
        stages: stage name -> label, in order.
        stage_label: the label of a stage that is not among them, by its name.
        styles: stage name -> how it is drawn; a stage without a style gets a color by its name.
        default_stage: the stage a page shows first; the last one where it is missing.
        verdict: the perplexities of the stages, to a sentence on whether the method helped on this
            model.
        remedy: what loses less of the model than a run that lost too much, as a clause.
        forecast: the figures a run ended with, to a sentence on what they promise for other runs.
        key_figure: the figures a run ended with, and the stage it kept, to the one it is
            remembered by; None where they do not suffice.
        brief: the same of a kind whose runs are no result by themselves: for tables of runs.
        key_metric: what its stages are compared by at a glance.
        headline: config values -> the settings that name its run first; the other fields follow,
            but for those in `headline_fields`.
        main_fields: of the config, which set how strongly it works; shown first.
        compresses: whether it changes a model or trains a part of one, rather than measure or
            export what there is.
        has_models: whether its stages are whole models, with a perplexity, a size and a speed each.
        saves: what its runs save for others to work on, such as "model"; empty: nothing.
        packs: whether the model they save has packed weights.
    """

    name: str
    title: str
    summary: str
    config: type[JobConfig]
    requirements: Callable[[Any], Requirements]
    run: str
    plan: type[Plan] | None = None
    order: int = 1000
    stages: Mapping[str, str] = field(default_factory=dict)
    stage_label: Callable[[str], str] = capitalized
    styles: Mapping[str, StageStyle] = field(default_factory=dict)
    default_stage: str = ""
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    verdict: Callable[[StageComparison], str] = lambda _: ""
    remedy: str = ""
    forecast: Callable[[Values], str] = lambda _: ""
    key_figure: Callable[[Values, str], KeyFigure | None] | None = None
    brief: Callable[[Values, str], KeyFigure | None] | None = None
    key_metric: MetricKey = PERPLEXITY
    headline: Callable[[Mapping[str, Any]], list[str]] | None = None
    headline_fields: frozenset[str] = frozenset()
    main_fields: tuple[str, ...] = ()
    compresses: bool = False
    has_models: bool = True
    saves: str = ""
    packs: bool = False

    def preset(self, names: str) -> Mapping[str, Any]:
        """The field values of a recipe, a preset, or both: "ALPS, quick look"; none for "". Raises
        ConfigError: there is no recipe or preset of that name."""
        options, values = {**self.recipes, **self.presets}, dict[str, Any]()
        for name in filter(None, map(str.strip, names.split(","))):
            if name not in options:
                known = ", ".join(options) or "none"
                raise ConfigError(f"There is no preset {name[:40]!r}.", "", f"Choose: {known}.")
            values |= options[name]
        return values


def load_work(name: str) -> Callable[..., Any]:
    """Import "module:function", such as the `run` of a kind: `run(config, context)`."""
    module, _, function = name.partition(":")
    gc.disable()  # nothing that torch, transformers and Gradio import is garbage: a second less
    try:
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
        gc.freeze()  # nor will it be: later collections need not look through it
    finally:
        gc.enable()
    return loaded


@lru_cache
def kinds() -> dict[str, Kind]:
    """All kinds by name: built-in ones in their order, then those of `SLIMSCOPE_PLUGINS`."""
    ours = sorted(built_in(), key=lambda kind: (kind.order, kind.name))
    plugins = (kind for module in settings().plugins for kind in _plugin_kinds(module))
    return {kind.name: kind for kind in (*ours, *plugins)}


def _plugin_kinds(module: str) -> Sequence[Kind]:
    """The kinds of a plugin. One without, such as a pruner, is not imported: it may load torch."""
    file = source_file(module)
    if file and "KINDS" not in file.read_text(encoding="utf-8"):
        return ()
    try:
        found: Sequence[Kind] = getattr(importlib.import_module(module), "KINDS", ())
    except ImportError as error:
        what = f"The plugin {module[:80]!r} was not loaded."
        raise ConfigError(what, f"{error}.", "Correct SLIMSCOPE_PLUGINS.") from error
    return found


def built_in() -> Iterator[Kind]:
    """The `KIND` of every folder of `jobs` that has a `kind.py`."""
    for file in Path(__file__).parent.glob("*/kind.py"):
        yield importlib.import_module(f"jobs.{file.parent.name}.kind").KIND


def kind_named(name: str) -> Kind:
    """The kind of that name; `ConfigError` if there is none."""
    if name not in kinds():
        raise ConfigError(
            f"There is no kind of run called {name[:40]!r}.", "", f"Choose: {', '.join(kinds())}."
        )
    return kinds()[name]


def stage_labels(kind: str) -> Mapping[str, str]:
    """Stage -> label of a kind, in order; none of a kind whose plugin is gone."""
    return kinds()[kind].stages if kind in kinds() else {}
