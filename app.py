"""The one entry: settings -> tables up to date -> supervisor alive -> pages -> launch."""

from __future__ import annotations

from backend.settings import settings
from backend.store.migrate import upgrade


def main() -> None:
    """Opens the dashboard on `SLIMSCOPE_HOST`:`SLIMSCOPE_PORT`."""
    upgrade()
    from ui.app import serve  # after the tables: pages read them while they are built

    serve(settings())


if __name__ == "__main__":
    main()
