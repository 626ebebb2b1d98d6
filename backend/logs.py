"""What loggers write: JSON, one object a line, for what collects logs; on a terminal, lines for
people. Messages that an attacker can cause at will must not fill the disk."""

import json
import logging
import sys
import time
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """When (UTC), how bad, who says what, and the trace of an error."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {"at": at, "level": record.levelname.lower(), "logger": record.name}
        said["message"] = record.getMessage()
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said)


def start_logging() -> bool:
    """Write what loggers are told to standard error; return whether that is JSON."""
    handler, is_read = logging.StreamHandler(), sys.stderr.isatty()
    for_people = logging.Formatter("%(asctime)s %(name)s %(message)s")
    handler.setFormatter(for_people if is_read else JsonFormatter())
    logging.basicConfig(handlers=[handler])
    return not is_read


MINUTE = 60.0
PER_MINUTE = {  # logger -> messages a minute from the same line of code
    "asyncio": 5,  # "socket.accept() out of system resource", with a trace
    "uvicorn.error": 5,  # "Invalid HTTP request received."
    "slimscope.database": 5,
    "slimscope.refused": 300,
}


class RepeatFilter(logging.Filter):
    """Passes at most `most` messages a minute from one line of code. The first one of the next
    minute says how many were left out."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}  # -> start of the minute, number

    def filter(self, record: logging.LogRecord) -> bool:
        now, line = time.monotonic(), (record.pathname, record.lineno)
        start, number = self._seen.get(line, (now, 0))
        if now - start >= MINUTE:
            if number > self.most:
                record.msg = f"{record.getMessage()} ({number - self.most} more were not logged)"
                record.args = ()
            start, number = now, 0
        self._seen[line] = start, number + 1
        return number < self.most


def throttle_logs() -> None:
    """Limit the loggers that requests can make write."""
    for name, most in PER_MINUTE.items():
        logging.getLogger(name).addFilter(RepeatFilter(most))
