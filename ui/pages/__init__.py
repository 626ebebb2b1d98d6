"""Pages, one package per page. A package is found by its folder, and its `page.py` defines
`PAGE`."""

import importlib
import pkgutil
from functools import lru_cache

from backend.settings import settings
from ui.frame import Page


@lru_cache
def pages() -> tuple[Page, ...]:
    """All pages in navigation order: those of this folder, then those of `SLIMSCOPE_PLUGINS`
    (modules with `PAGES`)."""
    folders = [f"{__name__}.{found.name}.page" for found in pkgutil.iter_modules(__path__)]
    own = [importlib.import_module(name).PAGE for name in folders]
    plugins = [importlib.import_module(name) for name in settings().plugins]
    added = [page for plugin in plugins for page in getattr(plugin, "PAGES", ())]
    return tuple(sorted([*own, *added], key=lambda page: page.order))
