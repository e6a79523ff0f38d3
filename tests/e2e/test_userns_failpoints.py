"""Every step of the life of a pod with a user namespace fails, or is the last that forgeoned does."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest

from engines.base import IdMapping, NamespaceMode, SandboxSpec
from forgeone_shim.kernel import idmapped
from forgeone_shim.runtime import userns
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from tests.e2e.test_failpoints import Lab, _fail_in, _live_and_crash

pytestmark = [
    pytest.mark.root,
    # Threads that crash are what is tested here.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

# As in the test it builds on; of steps that plain pods have too only a few are tried again.
_STRIDE = 16
_OWN_STEPS = (
    "NamespaceServer.make_namespaces",
    "namespaces.pin_descriptors",
    "idmapped.mount_overlay",
    "userns.open_to_root",
)
_MAPPED = (IdMapping(host_id=65536 * 9, container_id=0, length=65536),)


class _Mapped(Lab):
    """Its pods have a user namespace."""

    def open(self) -> None:
        super().open()
        for owner, name in (
            (self.parts.shim, "make_namespaces"),
            (userns.namespaces, "pin_descriptors"),
            (idmapped, "mount_overlay"),
            (userns, "open_to_root"),
        ):
            label = f"{getattr(owner, '__name__', type(owner).__name__).rsplit('.', 1)[-1]}.{name}"
            wrapped = functools.partial(self.faults.step, label, getattr(owner, name))
            self._instruments.enter_context(patch.object(owner, name, wrapped))

    def spec(self) -> SandboxSpec:
        plain = super().spec()
        namespaces = replace(
            plain.security.namespaces, user=NamespaceMode.POD, uid_mappings=_MAPPED, gid_mappings=_MAPPED
        )
        return replace(plain, security=replace(plain.security, namespaces=namespaces))

    def left(self) -> list[str]:
        # The fork server stays for the next pod.
        return [line for line in super().left() if "forgeone_shim.shim.server" not in line]


@contextmanager
def _lab(registry: Registry, image: str) -> Iterator[Lab]:
    daemon = Daemon([registry.address])
    try:
        made = _Mapped(daemon, image)
        try:
            yield made
        finally:
            made.close()
    finally:
        daemon.close()


def test_a_step_that_fails_is_undone_and_the_call_can_be_repeated(registry: Registry, busybox: str) -> None:
    with _lab(registry, busybox) as here:
        assert set(_OWN_STEPS) <= set(here.steps())
        noticed = 0
        for name, after in itertools.product(_OWN_STEPS, (False, True)):
            for call in ("run", "create"):
                noticed += _fail_in(here, call, name, after=after)
        assert noticed == 2 * (len(_OWN_STEPS) + 1)


def test_a_crash_between_any_two_steps_is_recovered_from(registry: Registry, busybox: str) -> None:
    with _lab(registry, busybox) as here:
        for crash in itertools.count(random.randrange(1, _STRIDE + 1), _STRIDE):
            if not _live_and_crash(here, crash):
                break
        assert crash > 60
