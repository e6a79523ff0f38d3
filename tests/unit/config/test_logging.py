from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from forgeone_shim.config.logging import change, setup
from forgeone_shim.config.model import LogConfig


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_a_json_line_carries_time_level_event_and_what_was_bound() -> None:
    out = io.StringIO()
    setup(LogConfig(), out)
    structlog.get_logger().info("started", pid=1, error=ValueError("x"))
    line = json.loads(out.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {"level": "info", "event": "started", "pid": 1, "error": "x"}


def test_the_libraries_loggers_speak_the_same_format() -> None:
    out = io.StringIO()
    setup(LogConfig(), out)
    logging.getLogger("urllib3").warning("retry %d", 3)
    line = json.loads(out.getvalue())
    assert (line["level"], line["event"], line["logger"]) == ("warning", "retry 3", "urllib3")


def test_what_is_below_the_level_is_not_written() -> None:
    out = io.StringIO()
    setup(LogConfig(level="warning"), out)
    structlog.get_logger().info("quiet")
    logging.getLogger("urllib3").info("quiet")
    assert out.getvalue() == ""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_local_variables(form: str) -> None:
    out = io.StringIO()
    setup(LogConfig(format=form), out)
    try:
        password = "hunter" + "2"
        raise ValueError(len(password))
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "ValueError" in out.getvalue()
    assert "hunter2" not in out.getvalue()


def test_the_format_changes_for_loggers_in_use() -> None:
    out = io.StringIO()
    setup(LogConfig(), out)
    logger, library = structlog.get_logger("cri"), logging.getLogger("urllib3")
    logger.info("one")
    change(LogConfig(format="console"))
    logger.info("two")
    library.warning("three")
    change(LogConfig())
    library.warning("four")
    first, second, third, fourth = out.getvalue().splitlines()
    assert (json.loads(first)["event"], json.loads(fourth)["event"]) == ("one", "four")
    assert "two" in second
    assert "three" in third
    assert "{" not in second + third


def test_the_level_changes_for_loggers_in_use() -> None:
    out = io.StringIO()
    setup(LogConfig(), out)
    logger, library = structlog.get_logger("cri"), logging.getLogger("urllib3")
    logger.info("one")
    logger.debug("not yet")
    change(LogConfig(level="debug"))
    logger.debug("two")
    library.debug("three")
    change(LogConfig(level="error"))
    logger.warning("no more")
    library.warning("no more")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["one", "two", "three"]
