"""Readiness told to a service manager."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from forgeone_shim.kernel.notify import READY, notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"@{tmp_path}"[:100] if abstract else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        try:
            manager.bind("\0" + name[1:] if abstract else name)
        except OSError:
            pytest.skip("the temporary directory's path is too long for a unix socket")
        manager.settimeout(5)
        assert notify(READY, {"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}])
def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    assert not notify(READY, environ)


def test_a_manager_that_does_not_listen_is_no_error(tmp_path: Path) -> None:
    assert not notify(READY, {"NOTIFY_SOCKET": str(tmp_path / "gone")})
