"""The process of one attempt: `python -m jobs.runtime.main --attempt ID`. One started ahead of its
attempt, with `--spare`, imports what runs need, and then reads which it is.

Exit codes are those of `backend.store.states.Exit`, the same for every engine.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import OperationalError

from backend.errors import CancelledError, SlimscopeError, is_disk_full
from backend.inputs import check_inputs
from backend.models.memory import is_out_of_memory
from backend.settings import settings
from backend.store.json_column import check_intact
from backend.store.migrate import current_revision, newest_revision
from backend.store.states import Exit
from backend.store.tables import Job
from jobs.kind import built_in, kind_named, load_work
from jobs.runtime.context import JobContext, claim
from jobs.runtime.figures import LeaseLostError
from jobs.runtime.probe import measure_once
from jobs.runtime.progress import limit_memory

# of a common model, and with it what transformers imports when it reads any
LATE_MODULES = ("transformers.models.llama.modeling_llama",)


def main() -> int:
    """Claim the attempt, run its job, and record how it ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--attempt", type=int)
    which.add_argument("--spare", action="store_true", help="the rest comes on the standard input")
    parser.add_argument("--log", type=Path, help="below the artifacts; else where output goes to")
    given = parser.parse_args()
    if given.spare:
        if (arguments := await_attempt()) is None:
            return Exit.DONE
        given = parser.parse_args(arguments)
    if given.log:
        # write what this process and its children print behind what is in a file
        log = settings().artifacts / given.log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
    limit_memory(settings().job_gb)
    try:
        if current_revision() != newest_revision():
            print("The database is of another version of Slimscope; restart the dashboard.")
            return Exit.OTHER_VERSION
        context = claim(given.attempt)
        for asking in (signal.SIGTERM, signal.SIGUSR1):  # the latter of Slurm, ahead of the end
            signal.signal(asking, lambda *_: context.ask_stop())
        context.start()
        code = execute(context)
        context.end_storing(code == Exit.DONE)
        return code
    except LeaseLostError:
        print("Another attempt holds this run; this process ends.", flush=True)
        return Exit.FENCED
    except OperationalError as error:  # the database is away: leave no outcome, to be tried again
        with suppress(OSError):  # the disk may have no room for it
            traceback.print_exc()
        return away_code(error)


def await_attempt() -> list[str] | None:
    """Import what runs of every kind need, and wait for the arguments of an attempt; None: there
    will be none. Plugins are imported by their runs alone."""
    for kind in built_in():
        load_work(kind.run)
    for module in LATE_MODULES:
        importlib.import_module(module)
    measure_once()
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        return None
    task = json.loads(line)
    os.environ |= task["environment"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    arguments: list[str] = task["arguments"]
    return arguments


def away_code(error: OperationalError) -> Exit:
    """The exit code of a process that ends because the database takes no more."""
    return Exit.NO_SPACE if is_disk_full(error) else Exit.AWAY


def execute(context: JobContext) -> int:
    """Run the job of a claimed attempt; return the exit code. Raises LeaseLostError: another
    attempt holds the job now; OperationalError: the database takes no more."""
    try:
        kind = kind_named(context.kind)
        context.log(f"{context.run} {kind.title}, attempt {context.attempt_n}")
        context.open_folder()
        check_intact(context.config)
        check_inputs(settings().inputs)
        config = kind.config.model_validate(context.config)
        measure_once()
        load_work(kind.run)(config, context)
        if context.folder_is_gone():  # and with it what the run leaves
            return Exit.FOLDER_GONE
        context.deliver()
        context.finish("succeeded", stage="done", done=Job.total, eta_s=0)
        return Exit.DONE
    except CancelledError:
        context.log("Stopped on request; everything finished so far is kept.")
        context.finish("stopped")
        return Exit.STOPPED
    except (LeaseLostError, OperationalError):
        raise
    except Exception as error:
        context.log(traceback.format_exc())
        if is_disk_full(error):  # nor without one: every part that was finished is kept
            return Exit.NO_SPACE
        if context.folder_is_gone():
            return Exit.FOLDER_GONE
        context.finish("failed", error=error_record(error))
        return Exit.ERROR


def error_record(error: Exception) -> dict[str, str]:
    """What happened, why, and what to do about an error."""
    if isinstance(error, SlimscopeError):
        return {"what": error.what, "why": error.why, "do": error.do}
    if is_out_of_memory(error):
        return {
            "what": "The run ran out of memory.",
            "why": str(error).split("\n")[0][:500],
            "do": "Free some memory and resume, or start a new run with fewer segments per pass or "
            "a shorter context length.",
        }
    return {
        "what": "The run failed with an unexpected error.",
        "why": f"{type(error).__name__}: {error}"[:500],
        "do": "The log has the whole traceback. Resume continues from the last checkpoint.",
    }


if __name__ == "__main__":
    sys.exit(main())
