"""Jails around Python functions: a parent such as a container's supervisor, and a guest that does what a test says."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from engines.wasm import jail
from engines.wasm.jail.filter import guest_profile
from engines.wasm.jail.plan import Filter, JailPlan
from engines.wasm.jail.planning import compiled
from forgeone_shim.errors import ForgeError
from forgeone_shim.kernel import landlock
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.descriptors import close_all_but

SECONDS = 30
#: Lets everything through: what holds then is not the filter.
OPEN = Filter(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
Guest = Callable[[], Any]


def plan(rootfs: str, **changes: Any) -> JailPlan:
    """A jail with everything new, of the user 1000."""
    whole: dict[str, Any] = {
        "rootfs": rootfs,
        "network": None,
        "ipc": "",
        "uts": "",
        "uid": 1000,
        "gid": 1000,
        "landlock": landlock.version(),
        "filters": changes.pop("filters", None) or (compiled(guest_profile(), Compiler()),),
    }
    return JailPlan(**(whole | changes))


class Refused(Exception):
    """The jail was not made; the words of the error, and its kind."""


@dataclass(frozen=True, slots=True)
class Held:
    """A guest that waits; ``pid`` is the host's number for it."""

    pid: int
    _said: int
    _go: int

    def result(self) -> Any:
        """Let it go on, and what it says."""
        os.write(self._go, b"g")
        return _answer(self._said)


@contextmanager
def held(made: JailPlan, guest: Guest, *, beside: int | None = None, locked: bool = True) -> Iterator[Held]:
    """A guest in its jail, that waits for :meth:`Held.result`. ``beside`` is a pid: in the jail of that."""
    said, say = os.pipe()
    wait, go = os.pipe()
    target = None if beside is None else os.pidfd_open(beside)
    parent = os.fork()
    if parent == 0:
        os.close(said)
        os.close(go)
        _parent(made, guest, say, wait, target, locked=locked)
    os.close(say)
    os.close(wait)
    if target is not None:
        os.close(target)
    try:
        yield Held(int(_answer(said)), said, go)
    finally:
        os.close(said)
        os.close(go)
        # It has an alarm, but nobody waits that long for a test that failed.
        os.kill(parent, signal.SIGTERM)
        os.waitpid(parent, 0)


def run(made: JailPlan, guest: Guest, **how: Any) -> Any:
    """What ``guest`` returns in a jail."""
    with held(made, guest, **how) as one:
        return one.result()


def _answer(fd: int) -> Any:
    if not select.select([fd], [], [], SECONDS)[0]:
        raise TimeoutError("the jail says nothing")
    data = os.read(fd, 65536)
    if not data:
        raise Refused("the process died without a word")
    answer = json.loads(data)
    if "wrong" in answer:
        raise Refused(answer["wrong"])
    return answer["is"]


def _say(fd: int, key: str, value: Any) -> None:
    os.write(fd, json.dumps({key: value}).encode())


def _parent(made: JailPlan, guest: Guest, say: int, wait: int, target: int | None, *, locked: bool) -> NoReturn:
    child = 0
    try:
        signal.alarm(SECONDS)
        if target is None:
            jail.before_fork(made)
        else:
            jail.enter_processes(target)
        child = os.fork()
        if child == 0:
            _guest(made, guest, say, wait, target, locked=locked)

        def end(*_: object) -> None:
            os.kill(child, signal.SIGKILL)

        signal.signal(signal.SIGTERM, end)
        os.waitpid(child, 0)
    except ForgeError as error:
        _say(say, "wrong", f"{error.kind}: {error}")
    except BaseException:
        _say(say, "wrong", traceback.format_exc())
    finally:
        os._exit(0)


def _guest(made: JailPlan, guest: Guest, say: int, wait: int, target: int | None, *, locked: bool) -> NoReturn:
    try:
        signal.alarm(SECONDS)
        pid = os.readlink("/proc/self")
        close_all_but((2, say, wait, *((target,) if target is not None else ())))
        if target is None:
            jail.enter(made)
        else:
            jail.join(made, target)
            os.close(target)
        if locked:
            jail.lock(made)
        _say(say, "is", pid)
        os.read(wait, 1)
        _say(say, "is", guest())
    except ForgeError as error:
        _say(say, "wrong", f"{error.kind}: {error}")
    except BaseException:
        _say(say, "wrong", traceback.format_exc())
    finally:
        os._exit(0)
