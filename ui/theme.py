"""Colors and the Gradio theme. A stage, state or run has the same color on every page."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import gradio as gr

from jobs.kind import StageStyle, kinds
from ui.static import STYLES

# Both typefaces (SIL Open Font License) are served from the gradio package. Its semi-bold files
# lack letters, so bold replaces weight 600.
WEIGHTS = (400, 700)
SANS = (gr.themes.LocalFont("IBM Plex Sans", WEIGHTS), "system-ui", "sans-serif")


class Palette(NamedTuple):
    """Colors that differ between light and dark mode: grays, links, and the blue of data."""

    ground: str  # background behind the cards
    paper: str
    panel: str
    line: str
    text: str
    muted: str
    edge: str  # border of controls, with a contrast of 3:1
    accent: str  # links and focus
    button: str  # primary button, under white text
    blue: str  # color of data


LIGHT = Palette(
    "#F4F5F7",
    "#FFFFFF",
    "#F7F8FA",
    "#E3E6EB",
    "#14181F",
    "#5B6472",
    "#8A93A0",
    "#0068A3",
    "#0068A3",
    "#0072B2",
)
DARK = Palette(
    "#0A0C10",
    "#12161B",
    "#1A1F26",
    "#2C333D",
    "#E8EBF0",
    "#9AA4B2",
    "#66707E",
    "#6CB8EE",
    "#0068A3",
    "#3D97D9",
)


# Okabe and Ito's palette, distinguishable with color vision deficiency
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PINK = LIGHT.blue, "#D55E00", "#CC79A7"
OKABE_ITO = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PINK)
PURPLE, BROWN = "#9467BD", "#A6761D"
PAINT = (*OKABE_ITO, PURPLE, BROWN)


class LineStyle(NamedTuple):
    """Line color of a stage, and a dash pattern if two stages share the color."""

    color: str
    dash: str = "solid"


PALETTE = {
    "gray": LIGHT.muted,
    "orange": ORANGE,
    "sky": SKY,
    "green": GREEN,
    "yellow": YELLOW,
    "blue": BLUE,
    "vermillion": VERMILLION,
    "pink": PINK,
    "purple": PURPLE,
    "brown": BROWN,
}


def stage_style(stage: str, index: int | None = None) -> LineStyle:
    """Return the line style that the stage's kind declares. Other stages get a color by `index`
    among the lines of a chart, or else by name."""
    if style := stage_styles().get(stage):
        return LineStyle(PALETTE[style.color], style.dash)
    return LineStyle(OKABE_ITO[(sum(stage.encode()) if index is None else index) % len(OKABE_ITO)])


def name_colors(names: Iterable[str]) -> dict[str, str]:
    """Return colors of stages. Stages without a declared style get one by name, on every page."""
    names = [*names]
    undeclared = sorted({name for name in names if name not in stage_styles()})
    fallback = {name: PAINT[i % len(PAINT)] for i, name in enumerate(undeclared)}
    return {name: fallback.get(name) or stage_style(name).color for name in names}


def ink(color: str) -> str:
    """Return a color for HTML. Palette colors become CSS variables."""
    variables = {value: name for name, value in LIGHT._asdict().items()}
    return f"var(--{variables[color]})" if color in variables else color


def declared(stage: str) -> StageStyle:
    """Return the declared style of a stage. An undeclared stage is neither main nor pruned."""
    return stage_styles().get(stage, StageStyle("gray"))


@lru_cache
def stage_styles() -> Mapping[str, StageStyle]:
    return {
        stage: style for kind in reversed(kinds().values()) for stage, style in kind.styles.items()
    }


def theme() -> gr.themes.Base:
    base = gr.themes.Base(
        primary_hue=_hue(LIGHT.accent),
        secondary_hue=_hue(LIGHT.accent),
        neutral_hue="gray",
        text_size=gr.themes.Size(
            "0.75rem", "0.75rem", "0.875rem", "0.875rem", "1rem", "1.25rem", "1.75rem"
        ),
        spacing_size="sm",
        radius_size=gr.themes.Size(*["8px"] * 7),
        font=SANS,
        font_mono=(gr.themes.LocalFont("IBM Plex Mono", WEIGHTS), "ui-monospace", "monospace"),
    )
    colors = [(name, field) for field, names in _COLORS.items() for name in names]
    light = {name: getattr(LIGHT, field) for name, field in colors}
    dark = {f"{name}_dark": getattr(DARK, field) for name, field in colors}
    fixed = {name: value for value, names in _VALUES.items() for name in names}
    return base.set(**light, **dark, **fixed)


def _hue(color: str) -> gr.themes.Color:
    return gr.themes.Color(*[color] * 11)


_COLORS = {  # palette field -> theme variables
    "ground": ("body_background_fill",),
    "text": (
        "body_text_color",
        "checkbox_label_text_color",
        "checkbox_label_text_color_selected",
        "button_secondary_text_color",
    ),
    "muted": (
        "body_text_color_subdued",
        "block_info_text_color",
        "block_label_text_color",
        "block_title_text_color",
        "input_placeholder_color",
        "checkbox_border_color",
    ),
    "paper": (
        "background_fill_primary",
        "block_background_fill",
        "block_label_background_fill",
        "input_background_fill",
        "checkbox_background_color",
        "checkbox_label_background_fill",
        "table_even_background_fill",
        "table_odd_background_fill",
        "button_secondary_background_fill",
    ),
    "panel": (
        "background_fill_secondary",
        "color_accent_soft",
        "code_background_fill",
        "checkbox_label_background_fill_hover",
        "checkbox_label_background_fill_selected",
        "button_secondary_background_fill_hover",
    ),
    "line": ("border_color_primary", "block_border_color", "table_border_color"),
    "accent": (
        "border_color_accent",
        "link_text_color",
        "link_text_color_hover",
        "link_text_color_visited",
        "link_text_color_active",
        "input_border_color_focus",
        "checkbox_label_border_color_selected",
        "slider_color",
    ),
    "edge": (
        "input_border_color",
        "checkbox_label_border_color",
        "checkbox_label_border_color_hover",
        "button_secondary_border_color",
    ),
    "button": (
        "button_primary_background_fill",
        "button_primary_background_fill_hover",
        "button_primary_border_color",
    ),
}
_VALUES = {  # value -> theme variables, in both modes
    "0px": (
        "block_border_width",
        "block_label_border_width",
        "block_padding",
        "form_gap_width",
        "shadow_spread",
    ),
    "none": (
        "block_shadow",
        "block_label_shadow",
        "button_primary_shadow",
        "button_secondary_shadow",
        "checkbox_label_shadow",
        "checkbox_shadow",
        "input_shadow",
        "input_shadow_focus",
        "shadow_drop",
        "shadow_drop_lg",
    ),
    "0.75rem": ("block_title_text_size", "block_info_text_size"),
    "600": (
        "block_title_text_weight",
        "button_large_text_weight",
        "button_medium_text_weight",
        "section_header_text_weight",
    ),
    "1px": ("button_border_width", "input_border_width"),
    "#FFFFFF": ("button_primary_text_color", "button_primary_text_color_dark"),
    "400": ("button_small_text_weight",),
    "8px 12px": ("input_padding",),
    "16px": ("layout_gap",),
}


def variables_of(palette: Palette) -> str:
    return "".join(f"--{name}:{color};" for name, color in palette._asdict().items())


def css() -> str:
    variables = f":root{{{variables_of(LIGHT)}}}\n:root .dark, .dark{{{variables_of(DARK)}}}\n"
    sheets = sorted(STYLES.glob("*.css"))
    return variables + "".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
