"""Worker process of one attempt: `python -m jobs.runtime.main --attempt ID`.

With `--spare` the process is pre-warmed: it imports the modules that runs need, then reads its
arguments from standard input. Exit codes are those of `backend.store.states.Exit` on every engine.
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
from jobs.kind import built_in, get_kind, load_work
from jobs.runtime.context import JobContext, claim
from jobs.runtime.probe import measure_once
from jobs.runtime.progress import limit_memory
from jobs.runtime.row_buffer import LeaseLostError

# A common model class. Importing it also imports the modules that all models need.
PREIMPORTED_MODULES = ("transformers.models.llama.modeling_llama",)


def main() -> int:
    """Claim the attempt, run its job, and record the outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--attempt", type=int)
    mode.add_argument("--spare", action="store_true", help="read the arguments from standard input")
    parser.add_argument(
        "--log", type=Path, help="log file below the artifacts folder; default: standard output"
    )
    options = parser.parse_args()
    if options.spare:
        if (arguments := await_attempt()) is None:
            return Exit.DONE
        options = parser.parse_args(arguments)
    if options.log:
        # append the output of this process and its children to the log file
        log = settings().artifacts / options.log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
    limit_memory(settings().job_gb)
    try:
        if current_revision() != newest_revision():
            print("The database belongs to another version of Slimscope. Restart the dashboard.")
            return Exit.OTHER_VERSION
        context = claim(options.attempt)
        for number in (signal.SIGTERM, signal.SIGUSR1):  # Slurm sends SIGUSR1 before its time limit
            signal.signal(number, lambda *_: context.ask_stop())
        context.start()
        code = execute(context)
        context.end_storing(code == Exit.DONE)
        return code
    except LeaseLostError:
        print("Another attempt has taken over this run. This process exits.", flush=True)
        return Exit.FENCED
    except OperationalError as error:
        # the database is unreachable: record no outcome, so that the run is retried
        with suppress(OSError):  # the disk may be full
            traceback.print_exc()
        return database_exit_code(error)


def await_attempt() -> list[str] | None:
    """Import the modules of every built-in kind, then wait for the arguments of an attempt. Returns
    None if standard input closes first. Plugins are only imported by their own runs."""
    for kind in built_in():
        load_work(kind.run)
    for module in PREIMPORTED_MODULES:
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


def database_exit_code(error: OperationalError) -> Exit:
    """Return the exit code of a process that stops because the database rejects writes."""
    return Exit.NO_SPACE if is_disk_full(error) else Exit.AWAY


def execute(context: JobContext) -> int:
    """Run the job of a claimed attempt and return the exit code.

    Raises:
        LeaseLostError: another attempt has taken over the job.
        OperationalError: the database rejects writes.
    """
    try:
        kind = get_kind(context.kind)
        context.log(f"{context.run} {kind.title}, attempt {context.attempt_n}")
        context.open_folder()
        check_intact(context.config)
        check_inputs(settings().inputs)
        config = kind.config.model_validate(context.config)
        measure_once()
        load_work(kind.run)(config, context)
        if context.folder_is_gone():  # the results were deleted with it
            return Exit.FOLDER_GONE
        context.deliver()
        context.finish("succeeded", stage="done", done=Job.total, eta_s=0)
        return Exit.DONE
    except CancelledError:
        context.log("Stopped on request. Finished work is kept.")
        context.finish("stopped")
        return Exit.STOPPED
    except (LeaseLostError, OperationalError):
        raise
    except Exception as error:
        context.log(traceback.format_exc())
        if is_disk_full(error):  # not a failure of the run; finished work is kept
            return Exit.NO_SPACE
        if context.folder_is_gone():
            return Exit.FOLDER_GONE
        context.finish("failed", error=error_record(error))
        return Exit.ERROR


def error_record(error: Exception) -> dict[str, str]:
    """Return the stored record of an error: what happened, why, and what to do."""
    if isinstance(error, SlimscopeError):
        return {"what": error.what, "why": error.why, "do": error.do}
    if is_out_of_memory(error):
        return {
            "what": "The run ran out of memory.",
            "why": str(error).split("\n")[0][:500],
            "do": "Finished work is kept: free some memory and resume, or start a run with fewer "
            "segments per pass or a shorter context length.",
        }
    return {
        "what": "The run failed with an unexpected error.",
        "why": f"{type(error).__name__}: {error}"[:500],
        "do": "See the log for the traceback. Resume continues from the last checkpoint.",
    }


if __name__ == "__main__":
    sys.exit(main())
