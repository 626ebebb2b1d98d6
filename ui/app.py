"""The pages put together, and the web server that shows them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, Route

from backend.settings import Settings, settings
from ui import api
from ui.charts.template import templates
from ui.frame import Page, frame, pulse
from ui.gradio_patches import keep_sessions_small
from ui.pages import pages
from ui.search import search
from ui.security import auth
from ui.security.middleware import SecurityMiddleware
from ui.static import ASSETS, SCRIPT_URL, own_scripts, plotly_script
from ui.theme import css, theme

SESSIONS = 500  # page views that are remembered; one forgotten is drawn anew at its next change
NAP = 0.02  # seconds; Gradio looks for events a thousand times a second, 4 % of a core for nothing


def build(shown: tuple[Page, ...] | None = None) -> gr.Blocks:
    """All pages, the first at "/"."""
    shown = shown or pages()
    first, *others = shown
    with gr.Blocks(title="Slimscope", fill_width=True, analytics_enabled=False) as app:
        _fill(first, shown)
    for page in others:
        with app.route(page.name, page.path, show_in_navbar=page.in_navbar):
            _fill(page, shown)
    keep_sessions_small()
    app.queue(default_concurrency_limit=8, max_size=64)
    app._queue.sleep_when_free = NAP
    return app


def _fill(page: Page, shown: tuple[Page, ...]) -> None:
    with frame(page, shown):
        page.build()


def launch_options() -> dict[str, Any]:
    """What `Blocks.launch` is told, besides the address."""
    script = f"{own_scripts()}\nslimscope.templates = {templates()};"
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
        "share": False,
        "mcp_server": False,
        "state_session_capacity": SESSIONS,
        "max_file_size": 1,
        "_frontend": False,  # else a page that takes 3 s on a busy machine is taken for no network
        "blocked_paths": [str(path) for path in unserved()],
        "app_kwargs": {
            "routes": routes(),
            "middleware": [Middleware(SecurityMiddleware, scripts=(script,))],
            "openapi_url": None,  # of Gradio's own doors
        },
    }


def routes() -> list[BaseRoute]:
    """What is served beside the pages."""
    return [
        Route("/slimscope/pulse", pulse),
        Route("/slimscope/search", search),
        Route("/slimscope/host", auth.host_page, methods=["GET", "POST"]),
        Route("/slimscope/docs", api.docs),
        Mount(api.PATH, api.build()),
        Route(f"/{SCRIPT_URL}", plotly_script),
    ]


def unserved() -> tuple[Path, ...]:
    """Folders Gradio must never serve from; `ui.security.middleware` rejects the routes too."""
    here = settings()
    return (here.root, here.cache_dir, Path(__file__).parents[1])


def serve(here: Settings) -> None:
    """Shows the dashboard until the process is ended."""
    build().launch(
        server_name=here.host,
        server_port=here.port or None,
        inbrowser=here.browser and has_screen(),
        **launch_options(),
    )


def has_screen() -> bool:
    """Whether a browser could open a window here; without one it might take over the terminal."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
