"""Starts the dashboard: read settings, upgrade tables, start the supervisor, build pages,
launch."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time

from uvicorn.config import LOGGING_CONFIG

from backend.backup.examples import install_examples
from backend.logs import JsonFormatter, start_logging, throttle_logs
from backend.queue import scheduling
from backend.queue.launcher import HOST_TOKEN, SUPERVISOR
from backend.settings import settings, unknown_variables
from backend.store.migrate import other_version, upgrade
from jobs.cli.app import in_one_line, restrict_access
from jobs.imported import check_row
from jobs.kind import load_work
from ui import lean_gradio
from ui.security.connections import raise_file_limit

log = logging.getLogger("slimscope")
UVICORN_FORMATS = ("default", "access")
SUPERVISOR_CHECK_S = 5.0
SERVE, HOST_LINK = "ui.app:serve", "ui.security.auth:host_link"  # importing Gradio takes seconds


def main() -> None:
    """Open the dashboard on `SLIMSCOPE_HOST`:`SLIMSCOPE_PORT`."""
    if start_logging():
        LOGGING_CONFIG["formatters"] = {key: {"()": JsonFormatter} for key in UVICORN_FORMATS}
    throttle_logs()
    raise_file_limit()
    with in_one_line():
        here = settings()
        refuse_taken(here.host, here.port)
        restrict_access()
        upgrade()
        if here.examples:
            install_examples(check_row)
    with lean_gradio():
        serve = load_work(SERVE)
    os.environ.pop(HOST_TOKEN, None)  # neither the browser nor runs may inherit it
    threading.Thread(target=keep_supervised, name="keep-supervised", daemon=True).start()
    for name in unknown_variables():
        print(f"{name} is not a setting and has no effect. See docs/operations.md.", flush=True)
    print(
        f"Slimscope is running on http://{here.host}:{here.port}. Data folder: {here.root}",
        flush=True,
    )
    if here.shared:
        print(f"Host link (keep it private): {load_work(HOST_LINK)(here.port)}", flush=True)
    print("Ctrl+C stops the dashboard. Runs continue.", flush=True)
    serve(here)


def refuse_taken(host: str, port: int) -> None:
    """Exit with one line of advice if the address is in use."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        sys.exit(
            f"Cannot listen on {host}:{port} ({error}). Try: slimscope serve --port {port + 1}"
        )


def keep_supervised() -> None:
    """Keep a supervisor alive while runs are queued or running."""
    while True:
        try:
            status = scheduling.status()
            if (status.live or status.queued) and not other_version():
                SUPERVISOR.wake()
        except Exception as error:  # a busy database, a full disk: try again
            log.warning("Could not check the supervisor: %s", error)
        time.sleep(SUPERVISOR_CHECK_S)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("app.py takes no options. Use: slimscope serve --host ADDRESS --port PORT")
    main()
