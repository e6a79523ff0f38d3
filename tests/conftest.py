"""What every test may rely on: tests marked ``root`` are skipped, with the reason, where they cannot run."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# Read as gRPC is imported: in a process that a test forks it would begin anew, with descriptors that are closed there.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A busy machine is no failure; what must be fast has a test that says so.
settings.register_profile("patient", deadline=None)


def pytest_configure() -> None:
    settings.load_profile("patient")
    # Whoever runs this in the background of a script has it ignored, and so would every program the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: it makes mounts, namespaces, links and cgroups")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(skip)
