"""Kinds of run, and their registry.

A kind is a folder of `jobs`. `kind.py` contains the pydantic config (from which form, command line,
API, validation and stored record are generated), the requirements of a run, and the `Kind`. A long
config is in `config.py`. `run.py` does the work. A plugin is a module with `KINDS`. Only the
process of a job imports `run.py`; the other modules do not import torch.
"""

import gc
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from backend.errors import ConfigError
from backend.metric_key import MetricKey
from backend.models.memory import DeviceMemory, host_memory
from backend.options import Options, Plan, option
from backend.printable import printable
from backend.registry import source_file
from backend.settings import available_threads, settings
from jobs.estimates import Duration, PhaseWork
from jobs.metrics import PERPLEXITY
from jobs.wording import StageComparison, distinguishable, relative_change, signed


class JobConfig(Options):
    """Settings of every job."""

    seed: int = option(0, "Seed", ge=0, lt=2**31)
    """The same seed, threads and config give the same result."""
    threads: int = option(0, "CPU threads", ge=0, le=256, advanced=True)
    """0: all available threads."""
    device: str = option(
        "auto", "Device", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", advanced=True
    )
    """auto, cpu, cuda or cuda:0. auto uses a GPU if there is one."""

    @property
    def used_threads(self) -> int:
        """Number of threads that the run uses on this machine."""
        return self.threads or settings().threads or available_threads()

    @field_validator("*", mode="before")
    @classmethod
    def _plain_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Remove control characters from text, and reject true and false as numbers."""
        if isinstance(value, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            allowed = {annotation, *get_args(annotation)}
            if allowed & {int, float} and bool not in allowed:
                kind = "int_type" if int in allowed else "float_type"
                raise PydanticCustomError(kind, "It must be a number")
        return printable(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class DiskSpace:
    """Peak disk space of a run.

    Attributes:
        bytes: upper estimate.
        contents: what uses the space, such as "The hidden states".
        do: advice on how to reduce it.
        field: config field that reduces it.
    """

    bytes: float
    contents: str
    do: str
    field: str


@dataclass(frozen=True)
class Requirements:
    """Resources of a run, derived from its config.

    Attributes:
        title: title of the model.
        work: work of each phase, in order.
        memory: peak memory in bytes by purpose.
        device: memory of the device that the run computes on.
        plan: operations on each layer, for kinds with plans; stored with the run.
        disk: peak disk space.
        warnings: risks that do not prevent the run.
        notes: facts about the run.
        open_ended: True if a phase has no estimate.
        sizes: bytes of the source files (0 if unknown), bytes of the saved file, parameters.
        field_warnings: config field -> warning shown next to it.
    """

    title: str
    work: Sequence[PhaseWork]
    memory: Mapping[str, int]
    device: DeviceMemory = field(default_factory=host_memory)
    plan: Plan | None = None
    disk: DiskSpace | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    open_ended: bool = False
    sizes: tuple[int, int, int] | None = None
    field_warnings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Estimate(Requirements, Duration):
    """Resources and expected duration of a run, shown before it is queued. `bytes` is the expected
    peak memory on its device."""

    bytes: int

    @property
    def host_bytes(self) -> int:
        """Expected peak memory of the host."""
        return self.device.host_bytes(self.bytes)

    @property
    def size_before_bytes(self) -> int | None:
        """Size of the source's files; None if it is unknown."""
        return (self.sizes[0] or None) if self.sizes else None

    @property
    def size_after_bytes(self) -> int | None:
        """Expected size of the saved file; None if the run saves none."""
        return self.sizes[1] if self.sizes else None


@dataclass(frozen=True)
class StageStyle:
    """Appearance of a stage in charts.

    Attributes:
        color: name of a color in the palette of `ui.theme`, such as "blue".
        dash: Plotly line style; distinguishes stages with the same color.
        main: True for a step of the method, False for a control or side result.
        pruned: True if a pruner chose the zeros of the stage.
        trained: True if the whole model was trained, which trades errors of layers for its loss.
        short: label in a sentence or a narrow place; the label of the stage if empty.
    """

    color: str
    dash: str = "solid"
    main: bool = False
    pruned: bool = False
    trained: bool = False
    short: str = ""


Values = Mapping[tuple[str, MetricKey], float]  # (stage, metric) -> result of a run
SOURCE = "source"  # the compressed model that a run starts from; its dense model came before
REFERENCES = {SOURCE: "its source", "dense": "dense"}


@dataclass(frozen=True)
class KeyFigure:
    """The most important result of a run.

    Attributes:
        value: number with its unit, such as "45 %".
        label: meaning of the number; continues the value.
        text: sentence with the underlying results.
        title: the method and its rival, such as "SDS against its control"; empty without a rival.
        rivals: stages that `text` compares with, the strongest first.
    """

    value: str
    label: str
    text: str
    title: str = ""
    rivals: tuple[str, ...] = ()


def strongest(perplexity: Mapping[str, float], stages: Iterable[str]) -> str:
    """Return the stage with the lowest perplexity; "" if none was measured."""
    measured = (stage for stage in stages if stage in perplexity)
    return min(measured, key=perplexity.__getitem__, default="")


def rival_figure(
    values: Values, kept: str, rivals: Sequence[str], names: Mapping[str, str], condition: str = ""
) -> KeyFigure | None:
    """Return the perplexity of the kept stage relative to that of its strongest rival; None if
    unmeasured.

    Args:
        rivals: stages to compare with; the first one is named even if another is stronger.
        names: names of the stages in a sentence.
        condition: clause that ends the label, such as "at 4 bits".
    """
    perplexity = perplexities(values)
    rival = strongest(perplexity, rivals)
    if not rival or kept not in perplexity:
        return None
    others = [stage for stage in rivals[:1] if stage != rival]
    return KeyFigure(
        f"{signed(100 * (perplexity[kept] / perplexity[rival] - 1), 1)} %",
        " ".join(filter(None, (f"perplexity against {names[rival]}", condition))),
        reached(perplexity, names, kept, rival, others),
        f"{capital(names[kept])} against {names[rival]}",
        (rival, *others),
    )


def perplexities(values: Values) -> dict[str, float]:
    """Return the perplexity of each stage."""
    return {stage: value for (stage, key), value in values.items() if key == PERPLEXITY and value}


def reached(
    perplexity: Mapping[str, float],
    names: Mapping[str, str],
    kept: str,
    rival: str = "",
    others: Iterable[str] = (),
) -> str:
    """Return a sentence on the perplexity of a stage beside that of its rival and of others."""
    shown = [stage for stage in (kept, rival, *others, *REFERENCES) if stage in perplexity]
    figures = [perplexity[stage] for stage in shown]
    texts = dict(zip(shown, distinguishable(figures, 1 if min(figures) >= 10 else 2), strict=True))
    sentence = f"{capital(names[kept])} reaches perplexity {texts.pop(kept)}"
    if rival:
        change = relative_change(perplexity[kept], perplexity[rival])
        sentence += f", {change} {names[rival]} at {texts.pop(rival)}"
    return (
        "; ".join([sentence, *(f"{({**names} | REFERENCES)[s]} {texts[s]}" for s in texts)]) + "."
    )


def capital(text: str) -> str:
    """Return the text with a capital first letter."""
    return f"{text[:1].upper()}{text[1:]}"


def capitalized(stage: str) -> str:
    """Return the default label of a stage: "Head-1" for "head-1"."""
    return stage.replace("_", " ").capitalize()


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        name: unique name, such as "sds"; the prefix of its runs.
        title: title on pages.
        summary: one sentence on what runs of this kind do.
        config: pydantic class of the config.
        requirements: computes the requirements of a config, without torch. Raises `SlimscopeError`
            with `field` for an invalid config.
        run: "module:function" of the work, imported only by the process of a job.
        plan: class of the plans in the requirements, if any.
        order: position among the kinds.
        stages: stage name -> label, in order.
        stage_label: returns the label of a stage that is not in `stages`.
        styles: stage name -> appearance in charts; other stages get a color derived from their
            name.
        default_stage: stage that pages show first; the last stage if it is missing.
        recipes: algorithm -> field values that run only this algorithm. The first recipe has the
            default values.
        notes: recipe -> description in a few words.
        presets: effort -> field values that differ from the defaults, and are not set by recipes.
        verdict: summarizes from the perplexities of the stages if the method helped.
        remedy: clause that names settings with a smaller loss.
        forecast: describes what the results predict for other runs.
        key_figure: returns the key figure for the results and the kept stage; None if results are
            missing.
        table_figure: the same for kinds without a result of their own; shown only in tables.
        key_metric: metric that compares the stages at a glance.
        headline: returns the settings that name a run; the fields that are not in
            `headline_fields` follow.
        headline_fields: fields covered by `headline`.
        main_fields: fields that control the strength of the method; shown first.
        compresses: True if runs change or train a model, False if they measure or export it.
        has_models: True if stages are complete models with perplexity, size and speed.
        saves: artifact that other runs can use, such as "model"; empty if there is none.
        saves_packed: True if the saved model has packed weights.
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
    table_figure: Callable[[Values, str], KeyFigure | None] | None = None
    key_metric: MetricKey = PERPLEXITY
    headline: Callable[[Mapping[str, Any]], list[str]] | None = None
    headline_fields: frozenset[str] = frozenset()
    main_fields: tuple[str, ...] = ()
    compresses: bool = False
    has_models: bool = True
    saves: str = ""
    saves_packed: bool = False

    def preset(self, names: str) -> Mapping[str, Any]:
        """Return the field values of a recipe, a preset, or both, such as "ALPS, quick look"; empty
        for "". Raises `ConfigError` for an unknown name."""
        options, values = {**self.recipes, **self.presets}, dict[str, Any]()
        for name in filter(None, map(str.strip, names.split(","))):
            if name not in options:
                names_text = ", ".join(options) or "none"
                raise ConfigError(
                    f"There is no preset {name[:40]!r}.", "", f"Choose: {names_text}."
                )
            values |= options[name]
        return values


def load_work(name: str) -> Callable[..., Any]:
    """Import "module:function", such as `Kind.run`."""
    module, _, function = name.partition(":")
    gc.disable()  # imports create no garbage, so skipping collections saves a second
    try:
        work: Callable[..., Any] = getattr(importlib.import_module(module), function)
        gc.freeze()  # imported objects stay alive: later collections can skip them
    finally:
        gc.enable()
    return work


@lru_cache
def kinds() -> dict[str, Kind]:
    """Return all kinds by name: built-in kinds in their order, then those of plugins."""
    built_in_kinds = sorted(built_in(), key=lambda kind: (kind.order, kind.name))
    plugins = (kind for module in settings().plugins for kind in _plugin_kinds(module))
    return {kind.name: kind for kind in (*built_in_kinds, *plugins)}


def _plugin_kinds(module: str) -> Sequence[Kind]:
    """Return the kinds of a plugin. Plugins without kinds, such as pruners, are not imported, since
    they may load torch."""
    file = source_file(module)
    if file and "KINDS" not in file.read_text(encoding="utf-8"):
        return ()
    try:
        plugin_kinds: Sequence[Kind] = getattr(importlib.import_module(module), "KINDS", ())
    except ImportError as error:
        message = f"The plugin {module[:80]!r} was not loaded."
        raise ConfigError(message, f"{error}.", "Correct SLIMSCOPE_PLUGINS.") from error
    return plugin_kinds


def built_in() -> Iterator[Kind]:
    """Yield the `KIND` of every folder in `jobs` with a `kind.py`."""
    for file in Path(__file__).parent.glob("*/kind.py"):
        yield importlib.import_module(f"jobs.{file.parent.name}.kind").KIND


def get_kind(name: str) -> Kind:
    """Return the kind with this name. Raises `ConfigError` if there is none."""
    if name not in kinds():
        raise ConfigError(
            f"There is no kind of run called {name[:40]!r}.", "", f"Choose: {', '.join(kinds())}."
        )
    return kinds()[name]


def stage_labels(kind: str) -> Mapping[str, str]:
    """Return the labels of a kind's stages, in order; empty for a kind of a missing plugin."""
    return kinds()[kind].stages if kind in kinds() else {}
