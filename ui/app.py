"""Assembles the pages, the search and the web server."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from fastapi.exceptions import RequestValidationError
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from backend.settings import Settings, settings
from ui import api, live_api, openai_api
from ui.api_errors import API_PATH, invalid_request
from ui.charts.chart import templates
from ui.frame import VERSION, Page, frame, navigation, pulse
from ui.gradio_patches import (
    check_calls,
    keep_sessions_small,
    limit_events,
    loader_routes,
    name_pages,
    number_functions,
    poll_less_often,
    set_server_options,
    web_app_once,
    without_files,
    without_startup_check,
)
from ui.health import healthz, metrics
from ui.help import help_drawer
from ui.pages import pages
from ui.pages.new_run.page import PATH as NEW_RUN_PATH
from ui.pages.new_run.page import endpoint as new_run
from ui.pages.playground.answers import answer
from ui.pages.story import routes as story_routes
from ui.pages.weights import histograms
from ui.pages.workbench import plans, profiles, tables
from ui.search import search
from ui.security import auth
from ui.security.connections import server_options
from ui.security.middleware import SecurityMiddleware
from ui.static import (
    ASSETS,
    MODULES,
    SCRIPT_URL,
    module_script,
    modules_version,
    own_scripts,
    plotly_script,
)
from ui.templates import render
from ui.theme import css, theme

NO_PAGE = Page("", "", lambda: None, 0)  # outside the navigation
MAX_THREADS = 16  # for Gradio's event functions
MAX_SESSIONS = 500  # page views in memory; a dropped one is redrawn at its next change


def build(selected: tuple[Page, ...] | None = None) -> gr.Blocks:
    """Build the app with all pages or the `selected` ones. The first page is at "/"."""
    all_pages = selected or pages()
    first, *others = all_pages
    with web_app_once():
        with gr.Blocks(title="Slimscope", fill_width=True, analytics_enabled=False) as app:
            _fill(first, all_pages)
        for page in others:
            with app.route(page.name, page.path, show_in_navbar=page.listed):
                _fill(page, all_pages)
        app.queue(default_concurrency_limit=8, max_size=64)
    number_functions(app, VERSION)
    name_pages("Slimscope")
    keep_sessions_small()
    without_files()
    check_calls()
    set_server_options(server_options())
    poll_less_often(app)
    limit_events(app)
    return app


def _fill(page: Page, all_pages: tuple[Page, ...]) -> None:
    with frame(page, all_pages):
        page.build()


def launch_options() -> dict[str, Any]:
    """Return options of `Blocks.launch` except the address."""
    here = settings()
    modules = f"./{MODULES}/{modules_version()}"
    script = (
        f"{own_scripts()}\nslimscope.templates = {templates()};\nslimscope.modules('{modules}');"
    )
    return {
        "theme": theme(),
        "css": css(),
        "head": render("templates/script.html", script=Markup(script)),
        "favicon_path": ASSETS / "favicon.svg",
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "quiet": True,
        "share": False,
        "mcp_server": False,
        "state_session_capacity": MAX_SESSIONS,
        "max_file_size": 1,
        "max_threads": MAX_THREADS,
        **without_startup_check(),
        # `ui.security.middleware` also rejects routes to these folders
        "blocked_paths": [str(f) for f in (here.root, here.cache_dir, Path(__file__).parents[1])],
        "app_kwargs": {
            "routes": routes(),
            "exception_handlers": {404: not_found, RequestValidationError: invalid_request},
            "middleware": [Middleware(SecurityMiddleware, scripts=(script,))],
            "openapi_url": None,  # hides Gradio's own routes
        },
    }


def routes() -> list[BaseRoute]:
    return [
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        Route("/slimscope/pulse", pulse),
        Route("/slimscope/search", search),
        Route("/slimscope/help", help_drawer),
        Route("/slimscope/answer", answer, methods=["POST"]),
        *openai_api.routes(),
        *live_api.routes(),
        Route(NEW_RUN_PATH, new_run, methods=["POST"]),
        Route(histograms.PATH, histograms.histograms),
        Route(tables.START, tables.start),
        Route(profiles.PROFILE, profiles.profile),
        Route(profiles.BUDGET, profiles.budget),
        Route(plans.RUNS, plans.runs),
        Route(tables.WEIGHTS, tables.weights),
        *story_routes.routes(),
        Route("/slimscope/host", auth.host_page, methods=["GET", "POST"]),
        Route("/slimscope/leave", auth.leave, methods=["POST"]),
        Route("/slimscope/docs", api.docs),
        Mount(API_PATH, api.build()),
        Route(f"/{SCRIPT_URL}", plotly_script),
        *loader_routes(),
        Route(f"/{MODULES}/{{version}}/{{path:path}}", module_script),
    ]


def serve(here: Settings) -> None:
    # without a display, a text browser might take over the terminal
    has_display = not sys.platform.startswith("linux") or any(
        map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))
    )
    app = build()
    app.launch(
        server_name=here.host,
        server_port=here.port or None,
        inbrowser=has_display,
        prevent_thread_lock=True,
        **launch_options(),
    )
    # The pages live as long as the process. A full collection over their components takes 0.4 s, in
    # which no request is answered.
    gc.freeze()
    app.block_thread()


def not_found(request: Request, error: Exception) -> Response:
    """Return an HTML page for browsers and JSON for programs."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == 404 and "text/html" in request.headers.get("accept", ""):
        path = request.url.path
        root = "../" * (path.count("/") - 1)  # also works behind a URL prefix
        entries = navigation(NO_PAGE, pages())
        page = render("templates/not_found.html", path=path[:200], root=root, entries=entries)
        return HTMLResponse(page, 404)
    detail = error.detail if isinstance(error, HTTPException) else "Not found"
    return JSONResponse({"detail": detail}, status)
