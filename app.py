"""The one entry: settings -> tables up to date -> supervisor alive -> pages -> launch."""

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
from jobs.cli.app import restrict_access
from jobs.cli.command import in_one_line
from jobs.imported import check_row
from jobs.kind import load_work
from ui import lean_gradio
from ui.security.connections import raise_file_limit

log = logging.getLogger("slimscope")
UVICORN_FORMATS = ("default", "access")
LOOK_S = 5.0
SERVE, HOST_LINK = "ui.app:serve", "ui.security.auth:host_link"  # they import Gradio: seconds


def main() -> None:
    """Opens the dashboard on `SLIMSCOPE_HOST`:`SLIMSCOPE_PORT`."""
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
    os.environ.pop(HOST_TOKEN, None)  # a browser that is opened needs it no more than a run
    threading.Thread(target=keep_supervised, name="keep-supervised", daemon=True).start()
    for name in unknown_variables():
        print(f"{name} is no setting and has no effect: see docs/operations.md", flush=True)
    print(f"Slimscope is on http://{here.host}:{here.port}, its data in {here.root}", flush=True)
    if here.shared:
        print(f"Its host, and nobody else, opens {load_work(HOST_LINK)(here.port)}", flush=True)
    print("Ctrl+C ends the dashboard; runs go on.", flush=True)
    serve(here)


def refuse_taken(host: str, port: int) -> None:
    """Ends with one line of advice when the address cannot be listened on."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        sys.exit(
            f"Cannot listen on {host}:{port} ({error}). Try: slimscope serve --port {port + 1}"
        )


def keep_supervised() -> None:
    """While a run waits or works, sees to it that a supervisor is there."""
    while True:
        try:
            status = scheduling.status()
            if (status.live or status.queued) and not other_version():
                SUPERVISOR.wake()
        except Exception as error:  # a busy database, a full disk: look again
            log.warning("could not look after the supervisor: %s", error)
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
