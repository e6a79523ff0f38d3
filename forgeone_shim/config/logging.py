"""Log set-up: structlog for ForgeOne, and the standard library's loggers (those of the libraries) in the same shape."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO, cast

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
    rendering = _Rendering(config.format, colours=out.isatty())
    structlog.configure(
        processors=[gate, *shared, rendering],
        # Loggers are made once and kept, so what they let pass and how it looks is decided later.
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, rendering],
        )
    )
    logging.basicConfig(level=_libraries(level), handlers=[handler], force=True)


def change(config: LogConfig) -> None:
    """Change level and format of every logger set up by :func:`setup`, those in use already included."""
    level = logging.getLevelNamesMapping()[config.level.upper()]
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, _Gate):
            processor.level = level
        elif isinstance(processor, _Rendering):
            processor.take(config.format)
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


class _Rendering:
    """The last processor: an event as the text of a line."""

    __slots__ = ("_colours", "_steps")

    def __init__(self, format_: str, *, colours: bool) -> None:
        self._colours = colours
        self.take(format_)

    def take(self, format_: str) -> None:
        """Lines to come are in this format."""
        if format_ == "json":
            self._steps: tuple[structlog.typing.Processor, ...] = (
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(serializer=_to_json),
            )
        else:
            # Not the rich formatter: it prints local variables, and those may hold credentials.
            plain = structlog.dev.plain_traceback
            self._steps = (structlog.dev.ConsoleRenderer(colors=self._colours, exception_formatter=plain),)

    def __call__(
        self, logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.ProcessorReturnValue:
        found: Any = event
        for step in self._steps:
            found = step(logger, method, found)
        return cast(structlog.typing.ProcessorReturnValue, found)


def _libraries(level: int) -> int:
    """Their own chatter is of interest only when something is looked for."""
    return max(level, logging.WARNING) if level > logging.DEBUG else level


def _to_json(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
