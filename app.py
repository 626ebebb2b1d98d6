"""The one entry: settings -> tables up to date -> supervisor alive -> pages -> launch."""

from __future__ import annotations

import threading
import time

from backend.queue import supervisor
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import upgrade

LOOK_S = 5.0


def main() -> None:
    """Opens the dashboard on `SLIMSCOPE_HOST`:`SLIMSCOPE_PORT`."""
    upgrade()
    from ui.app import serve  # after the tables: pages read them while they are built

    threading.Thread(target=keep_supervised, name="keep-supervised", daemon=True).start()
    here = settings()
    print(f"Slimscope is on http://{here.host}:{here.port}, its data in {here.root}", flush=True)
    print("Ctrl+C ends the dashboard; runs go on.", flush=True)
    serve(here)


def keep_supervised() -> None:
    """While a run waits or works, sees to it that a supervisor is there."""
    while True:
        status = queries.status()
        if status.live or status.queued:
            supervisor.ensure()
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
