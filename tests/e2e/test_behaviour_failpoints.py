"""Each step of watching a container fails, or is the last that forgeoned does: nothing is lost, nothing is left."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from engines.base import SandboxSpec
from forgeone_shim.deadline import Deadline
from forgeone_shim.dna.behaviour import recorder
from forgeone_shim.errors import ForgeError
from forgeone_shim.kernel import cgroups, ebpf
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.settings import patient
from tests.e2e.test_failpoints import STRIDE, Faults, Lab, _fail_in, _live_and_crash

pytestmark = [
    pytest.mark.root,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

_STRIDE = 3 * STRIDE
# Steps of the kernel's side, and of the recorder's around them.
_KERNEL = ("create_map", "load_program", "attach_raw_tracepoint", "pin", "update", "delete")
_RECORDER = ("check", "watch", "forget", "read")


class WatchedLab(Lab):
    """Its pods' containers are watched, and the steps of that are the only ones that fail."""

    # A thread that crashes as it notes an end leaves another waiting, which a process that is killed does not.
    patience = patient(5.0)

    def open(self) -> None:
        super().open()
        self._instruments.close()
        watching = self.runtime._watching
        for owner, names in ((ebpf, _KERNEL), (watching._recorder, _RECORDER), (watching, ("_put",))):
            for name in names:
                step = functools.partial(_step, self.faults, name, getattr(owner, name))
                self._instruments.enter_context(patch.object(owner, name, step))

    def spec(self) -> SandboxSpec:
        return replace(super().spec(), annotations={"zta.forgeone.dev/behaviour": "true"})

    def left(self) -> list[str]:
        bpf = self.parts.paths.behaviour
        return super().left() + ([str(bpf)] if bpf.exists() else [])


def _step(faults: Faults, label: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return faults.step(label, functools.partial(function, *args, **kwargs))


@contextmanager
def lab(registry: Registry, image: str) -> Iterator[WatchedLab]:
    if not cgroups.detect().unified:
        pytest.skip("this host has no unified control group hierarchy")
    if reason := recorder.problem():
        pytest.skip(f"nothing can be counted here: {reason}")
    daemon = Daemon([registry.address])
    try:
        made = WatchedLab(daemon, image)
        try:
            yield made
        finally:
            made.close()
    finally:
        daemon.close()


def test_a_watch_that_fails_fails_the_start_and_can_be_repeated(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        calls: dict[str, set[str]] = {}
        here.faults.reset()
        for name, call in here.life(here.spec()):
            before = len(here.faults.names)
            call()
            calls[name] = {*here.faults.names[before:]}
        here.assert_nothing_left("a good life")
        assert {"watch", "update", "_put"} <= calls["start"]
        noticed = [
            (name, step)
            for name, after in itertools.product(("create", "start"), (False, True))
            for step in sorted(calls[name])
            if _fail_in(here, name, step, after=after)
        ]
        assert {("create", "pin"), ("create", "check"), ("start", "watch"), ("start", "_put")} <= {*noticed}


def test_ends_are_not_held_up_by_what_fails_of_the_watch(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        for step in ("read", "forget", "delete"):
            assert not _fail_in(here, "stop container", step, after=False)


def test_a_crash_between_any_two_steps_of_it_is_recovered_from(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        crash = 0
        # Many of these steps are one system call, and a crash between two of them is much like one between others.
        for crash in itertools.count(random.randrange(1, _STRIDE + 1), _STRIDE):
            if not _live_and_crash(here, crash):
                break
        assert crash > 20


def test_a_container_whose_watch_was_lost_in_a_crash_is_watched_again(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        life = here.life(here.spec())
        for _, call in itertools.islice(life, 3):
            call()
        (view,) = here.runtime.containers()
        assert here.runtime.behaviours.find(view.id).profile.whole
        here.close()
        recorder._remove(here.parts.paths.behaviour)
        here.open()
        found = here.runtime.behaviours.find(view.id)
        assert not found.profile.whole
        assert here.runtime._watching._recorder.watched() == {found.observed.group}
        with pytest.raises(ForgeError, match=r"not watched from its beginning|nothing yet"):
            here.runtime.behaviours.learn(view.id, Deadline.after(30), anew=True)
        for _, call in life:
            call()
        here.assert_nothing_left("a lost watch")
