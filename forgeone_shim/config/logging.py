"""Log set-up: structlog for ForgeOne, and the standard library's loggers (those of the libraries) in the same shape."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import msgspec
import structlog

from forgeone_shim.config.model import LogConfig

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "warn": logging.WARNING}


def setup(config: LogConfig, stream: TextIO | None = None) -> None:
    """Make every logger of this process write one line an event to ``stream`` (standard error).

    JSON lines carry ``timestamp`` (UTC, RFC 3339), ``level``, ``event`` and what the caller bound. Values that JSON has
    no form for are written as their ``str``.
    """
    out = sys.stderr if stream is None else stream
    level = logging.getLevelNamesMapping()[config.level.upper()]
    gate = _Gate(level)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if config.format == "json":
        render: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    else:
        # Not the rich formatter: it prints local variables, and those may hold credentials.
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[gate, *shared, *render],
        # Loggers are made once and kept, so what they let pass is decided later, by the gate.
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(level=_libraries(level), handlers=[handler], force=True)


def set_level(name: str) -> None:
    """Change the level of every logger set up by :func:`setup`, those in use already included."""
    level = logging.getLevelNamesMapping()[name.upper()]
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, _Gate):
            processor.level = level
    logging.root.setLevel(_libraries(level))


class _Gate:
    """The first processor: drops what is below the level."""

    __slots__ = ("level",)

    def __init__(self, level: int) -> None:
        self.level = level

    def __call__(self, _logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if _LEVELS.get(method, logging.ERROR) < self.level:
            raise structlog.DropEvent
        return event


def _libraries(level: int) -> int:
    """Their own chatter is of interest only when something is looked for."""
    return max(level, logging.WARNING) if level > logging.DEBUG else level


def _to_json(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
