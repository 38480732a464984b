"""One line of JSON for each thing worth telling, on standard error, with the id of the request it belongs to."""

import logging
import re
import secrets
import sys
import time
from contextvars import ContextVar
from typing import Any

from pydantic_core import to_json

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being answered here."""

_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id_from(header: str | None) -> str:
    """The client's own id where it has a plain one, so that nothing is forged into the log; else a new one."""
    return header if header and _ACCEPTED_ID.fullmatch(header) else secrets.token_hex(8)


class JsonFormatter(logging.Formatter):
    """A record as one line: time (UTC), level, logger, message, request_id, and the `fields` of its `extra`."""

    def __init__(self) -> None:
        super().__init__()
        self._second, self._shown = 0, ""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": f"{self._time(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return to_json(line, fallback=str).decode()

    def _time(self, second: int) -> str:
        if second != self._second:
            self._second, self._shown = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return self._shown


def set_up_logging(level: str) -> None:
    """Sends all logging of this process through the formatter; uvicorn's own request log is left out for ours."""
    # What no line of ours tells need not be found out for each: the logging documentation's own advice.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
