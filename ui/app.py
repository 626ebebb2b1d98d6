"""The pages put together, and the web server that shows them."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from starlette.routing import Route

from backend.settings import Settings
from ui.frame import Page, frame, pulse
from ui.pages import jobs, launch, overview, run, runs, weights
from ui.scripts import ASSETS, SCRIPT_URL, plotly_script
from ui.theme import css, theme

NAP = 0.02  # seconds; Gradio looks for events a thousand times a second, 4 % of a core for nothing
PAGES: tuple[Page, ...] = (
    overview.PAGE,
    launch.PAGE,
    jobs.PAGE,
    runs.PAGE,
    run.PAGE,
    weights.PAGE,
)


def build(pages: tuple[Page, ...] = PAGES) -> gr.Blocks:
    """All pages, the first at "/"."""
    first, *others = pages
    with gr.Blocks(title="Slimscope", fill_width=True, analytics_enabled=False) as app:
        _fill(first, pages)
    for page in others:
        with app.route(page.name, page.path, show_in_navbar=page.in_navbar):
            _fill(page, pages)
    app.queue(default_concurrency_limit=8, max_size=64)
    app._queue.sleep_when_free = NAP
    return app


def _fill(page: Page, pages: tuple[Page, ...]) -> None:
    with frame(page, pages):
        page.build()


def launch_options() -> dict[str, Any]:
    """What `Blocks.launch` is told, besides the address."""
    script = (ASSETS / "slimscope.js").read_text(encoding="utf-8")
    return {
        "theme": theme(),
        "css": css(),
        "head": f"<script>{script}</script>",
        "favicon_path": ASSETS / "favicon.svg",
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "quiet": True,
        "app_kwargs": {
            "routes": [Route("/slimscope/pulse", pulse), Route(f"/{SCRIPT_URL}", plotly_script)]
        },
    }


def serve(settings: Settings) -> None:
    """Shows the dashboard until the process is ended."""
    build().launch(
        server_name=settings.host,
        server_port=settings.port or None,
        inbrowser=settings.browser and has_screen(),
        **launch_options(),
    )


def has_screen() -> bool:
    """Whether a browser could open a window here; without one it might take over the terminal."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
