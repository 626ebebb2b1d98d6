"""What loggers write: JSON, one object a line, for what collects logs; on a terminal, lines for
people."""

import json
import logging
import sys
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
