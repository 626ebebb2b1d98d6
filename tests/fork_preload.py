"""What the process that others are forked from has imported: all of our code, torch and Gradio with
it."""

import gc
import importlib
import pkgutil

import backend
import jobs
import ui
from jobs.serving import server
from tests.flushing import flush_nothing
from tests.fork_server import fork_roots

gc.disable()
importlib.import_module("transformers.models.llama.modeling_llama")  # of the toy model
for package in (backend, jobs, ui):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith(("__main__", ".env")) and ".migrations." not in module.name:
            importlib.import_module(module.name)
flush_nothing()  # as in the tests themselves
fork_roots()
server.NICE = 0  # beside the tests of other processes, who answers would wait for a minute
gc.freeze()  # forks that collect garbage neither look through all this nor copy its pages
gc.enable()
