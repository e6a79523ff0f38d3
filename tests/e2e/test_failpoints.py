"""Every step of a pod's life fails, or is the last that forgeoned does: nothing is lost, nothing is left."""

from __future__ import annotations

import functools
import itertools
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from engines.base import ContainerSpec, NamespaceMode, NamespaceOptions, PortMapping, SandboxSpec, Security
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, InternalError
from forgeone_shim.kernel import mounts, namespaces
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.network import bridge, enforcement, podfiles
from forgeone_shim.runtime import containers
from forgeone_shim.runtime.runtime import Runtime
from hack.lab import leaks
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.settings import patient

pytestmark = [
    pytest.mark.root,
    # Threads that crash are what is tested here.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

# Of the moments between two steps every so manieth is tried, from a random one on; 1 tries all of them.
STRIDE = int(os.environ.get("CRASH_STRIDE", "4"))
_SETTLE = patient(10.0)
# Documents that outlive pods.
_STAYS = ("image", "layer", "blob", "network.cursor", "audit")
_numbers = itertools.count()


class Crash(BaseException):
    """Nothing of this process happens any more."""


@dataclass
class Faults:
    """Counts the steps taken; the one chosen fails, before or after it did its work.

    ``crash``: every step after it fails too, so that nothing is undone, as if the process had been killed.
    """

    chosen: str = ""
    after: bool = False
    crash: int = 0
    taken: int = 0
    fired: str = ""
    dead: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.names: list[str] = []

    def reset(self, *, chosen: str = "", after: bool = False, crash: int = 0) -> None:
        self.chosen, self.after, self.crash = chosen, after, crash
        self.taken, self.fired, self.dead = 0, "", False
        self.names = []

    def step(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self._die_if(self.dead)
            self.taken += 1
            self.names.append(name)
            mine = name == self.chosen and not self.fired
            if mine:
                self.fired = name
            # Odd numbers: before a step; even ones: after it.
            last_before, last_after = 2 * self.taken - 1 == self.crash, 2 * self.taken == self.crash
            if last_before or last_after:
                self.fired, self.dead = name, True
            self._die_if(last_before)
        if mine and not self.after:
            raise InternalError(f"{name} fails")
        result = function(*args, **kwargs)
        self._die_if(last_after)
        if mine:
            raise InternalError(f"{name} fails after it was done")
        return result

    @staticmethod
    def _die_if(dead: bool) -> None:
        if dead:
            raise Crash


class Lab:
    """A runtime in this process, on a root, names and ranges of its own."""

    # Seconds that a call's client waits.
    patience = 30.0

    def __init__(self, daemon: Daemon, image: str) -> None:
        self.daemon, self.image, self.faults = daemon, image, Faults()
        self._instruments = ExitStack()
        self.open()
        self.runtime.images.pull(image, None, Deadline.after(60))

    def open(self) -> None:
        self.faults.reset()
        self.runtime = Runtime.open(self.daemon.config)
        self.parts = self.runtime._p
        engine = self.parts.engines["native"]
        store, network, rootfs = self.parts.store, self.parts.network, self.parts.rootfs
        for owner, names in (
            (store, ("put", "replace", "insert", "delete")),
            (network, ("attach", "detach")),
            (rootfs, ("mount", "unmount", "remove")),
            (engine, ("prepare_sandbox", "remove_sandbox", "create", "start", "kill", "delete", "was_oom_killed")),
            (bridge, ("plug", "configure_pod", "unplug")),
            (enforcement, ("transact",)),
            (namespaces, ("pin_namespaces", "unpin")),
            (mounts, ("mount_tmpfs", "unmount")),
            (podfiles, ("write_pod_files",)),
            (containers, ("resolve_user",)),
            (shutil, ("rmtree",)),
        ):
            for name in names:
                label = f"{getattr(owner, '__name__', type(owner).__name__).rsplit('.', 1)[-1]}.{name}"
                wrapped = functools.partial(self.faults.step, label, getattr(owner, name))
                self._instruments.enter_context(patch.object(owner, name, wrapped))

    def close(self) -> None:
        self._instruments.close()
        self.runtime.close()

    def spec(self) -> SandboxSpec:
        name = f"pod{next(_numbers)}"
        systemd = self.runtime.cgroup_driver == "systemd"
        return SandboxSpec(
            name=name,
            uid=name,
            namespace="tests",
            hostname="tester",
            log_directory=str(self.daemon.directory / "logs" / name),
            cgroup_parent=f"forgeone-{self.daemon.tag}-{name}.slice"
            if systemd
            else f"/forgeone-{self.daemon.tag}/{name}",
            port_mappings=(PortMapping(80, 20000 + next(_numbers) % 10000),),
            security=Security(namespaces=NamespaceOptions(pid=NamespaceMode.POD)),
            annotations={"zta.forgeone.dev/egress": "pod:tests/*"},
        )

    def container(self, sandbox: SandboxSpec) -> ContainerSpec:
        return ContainerSpec(
            name="main",
            image=self.image,
            command=("sleep", "1000"),
            log_path="main.log",
            security=Security(namespaces=sandbox.security.namespaces),
        )

    def left(self) -> list[str]:
        """What is on the host, in the directories and in the database."""
        root, state = Path(self.daemon.config.root), Path(self.daemon.config.state)
        homes = (state / "sandboxes", state / "containers", state / "exits", state / "crun", root / "containers")
        found = [str(path) for home in homes if home.is_dir() for path in home.iterdir()]
        rows = self.parts.store._db.execute("SELECT kind, key FROM docs").fetchall()
        found += [f"document {kind} {key}" for kind, key in rows if not kind.startswith(_STAYS)]
        return self.daemon.left() + found

    def assert_nothing_left(self, why: str) -> bool:
        """Sooner or later, that is. Whether a crash came meanwhile."""
        crashed = False
        until = time.monotonic() + _SETTLE
        while left := self.left():
            assert time.monotonic() < until, f"{why}: left\n" + "\n".join(left)
            # A kubelet asks all the time, which has links tried again that could not be deleted.
            with suppress(Crash):
                self.runtime.status()
            time.sleep(0.05)
            if self.faults.dead:
                self.close()
                self.open()
                crashed = True
        return crashed

    def steps(self) -> list[str]:
        """The names of the steps of a whole life."""
        self.faults.reset()
        for _, call in self.life(self.spec()):
            call()
        self.assert_nothing_left("a good life")
        return list(dict.fromkeys(self.faults.names))

    def life(self, spec: SandboxSpec) -> Iterator[tuple[str, Callable[[], object]]]:
        """A pod's whole life, call by call, as a kubelet makes them. Each may be repeated."""
        ids: dict[str, str] = {}
        soon = functools.partial(Deadline.after, self.patience)

        def run() -> None:
            ids["pod"] = self.runtime.run_sandbox(spec, soon())

        def create() -> None:
            ids["container"] = self.runtime.create_container(ids["pod"], self.container(spec), soon())

        yield "run", run
        yield "create", create
        yield "start", lambda: self.runtime.start_container(ids["container"], soon())
        yield "stop container", lambda: self.runtime.stop_container(ids["container"], 0, soon())
        yield "stop", lambda: self.runtime.stop_sandbox(ids["pod"], soon())
        yield "remove", lambda: self.runtime.remove_sandbox(ids["pod"], soon())


@contextmanager
def lab(registry: Registry, image: str) -> Iterator[Lab]:
    daemon = Daemon([registry.address])
    try:
        made = Lab(daemon, image)
        try:
            yield made
        finally:
            made.close()
    finally:
        daemon.close()


def test_a_step_that_fails_is_undone_and_the_call_can_be_repeated(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        failed = 0
        for name, after in itertools.product(here.steps(), (False, True)):
            for call in ("run", "create", "start", "stop container", "stop", "remove"):
                failed += _fail_in(here, call, name, after=after)
        assert failed > 40


def _fail_in(here: Lab, wanted: str, step: str, *, after: bool) -> bool:
    """A life in which one step fails during one call, which is then repeated. Whether the call noticed."""
    noticed = False
    why = f"{step} failed {'after' if after else 'before'} its work during {wanted}"
    for name, call in here.life(here.spec()):
        if name != wanted:
            call()
            continue
        here.faults.reset(chosen=step, after=after)
        try:
            call()
        except ForgeError:
            noticed = True
            if name == "run":
                here.assert_nothing_left(why)
        here.faults.reset()
        if noticed:
            call()
    here.assert_nothing_left(why)
    assert here.runtime.sandboxes() == []
    return noticed


def test_a_slow_attach_does_not_outlive_the_pod_that_failed_beside_it(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        network, engine = here.parts.network, here.parts.engines["native"]
        attach, began = network.attach, threading.Event()

        def slowly(*args: Any, **kwargs: Any) -> object:
            began.set()
            time.sleep(0.3)
            return attach(*args, **kwargs)

        def fail(*_: object) -> str:
            began.wait(5)
            raise InternalError("no init")

        with patch.object(network, "attach", slowly), patch.object(engine, "prepare_sandbox", fail):
            with pytest.raises(InternalError, match="no init"):
                here.runtime.run_sandbox(here.spec(), Deadline.after(30))
            time.sleep(0.4)
        here.assert_nothing_left("a slow attach")


def test_a_create_is_repeated_although_the_failed_one_is_not_undone_yet(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        spec = here.spec()
        pod = here.runtime.run_sandbox(spec, Deadline.after(30))
        fail = InternalError("not now")
        with (
            patch.object(here.parts.engines["native"], "create", side_effect=fail),
            patch.object(here.parts.rootfs, "remove", side_effect=fail),
            pytest.raises(InternalError, match="not now"),
        ):
            here.runtime.create_container(pod, here.container(spec), Deadline.after(30))
        made = here.runtime.create_container(pod, here.container(spec), Deadline.after(30))
        here.runtime.start_container(made, Deadline.after(30))
        assert here.runtime.exec_sync(made, ("true",), 10).exit_code == 0
        here.runtime.remove_sandbox(pod, Deadline.after(30))
        here.assert_nothing_left("two creates")


def test_a_start_that_was_not_stored_can_be_repeated(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        spec = here.spec()
        pod = here.runtime.run_sandbox(spec, Deadline.after(30))
        made = here.runtime.create_container(pod, here.container(spec), Deadline.after(30))
        with (
            patch.object(here.parts.store, "put", side_effect=OSError("disk full")),
            pytest.raises(OSError, match="disk full"),
        ):
            here.runtime.start_container(made, Deadline.after(30))
        here.runtime.start_container(made, Deadline.after(30))
        assert here.runtime.container(made).state is State.RUNNING
        here.runtime.remove_sandbox(pod, Deadline.after(30))
        here.assert_nothing_left("two starts")


def test_other_users_of_the_host_have_no_way_into_pods_and_containers(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        spec = here.spec()
        pod = here.runtime.run_sandbox(spec, Deadline.after(30))
        made = here.runtime.create_container(pod, here.container(spec), Deadline.after(30))
        state, root = Path(here.daemon.config.state), Path(here.daemon.config.root)
        private = (state / "sandboxes" / pod, state / "containers" / made, root / "containers", root / "layers")
        assert [oct(path.stat().st_mode & 0o777) for path in private] == ["0o700"] * 4
        here.runtime.remove_sandbox(pod, Deadline.after(30))
        here.assert_nothing_left("modes")


def test_a_crash_between_any_two_steps_is_recovered_from(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        for crash in itertools.count(random.randrange(1, STRIDE + 1), STRIDE):
            if not _live_and_crash(here, crash):
                break
        assert crash > 60


def _live_and_crash(here: Lab, crash: int) -> bool:
    """A life in which everything stops once and starts anew. Whether it did."""
    here.faults.reset(crash=crash)
    crashed = False
    for name, call in here.life(here.spec()):
        finished = False
        # Crash may be another thread's; this one then finds the ruins.
        with suppress(Crash, ForgeError):
            call()
            finished = True
        assert finished or here.faults.dead
        if here.faults.dead:
            why = f"crash {crash}, at {here.faults.fired} during {name}"
            crashed = True
            here.close()
            here.open()
            if not finished:
                _repeat(call, why)
    # The crash may still come, in what is tidied up beside the calls.
    return here.assert_nothing_left(f"crash {crash}") or crashed


def _repeat(call: Callable[[], object], why: str) -> None:
    try:
        call()
    except ForgeError as error:
        raise AssertionError(f"{why}: cannot be repeated: {error}") from error


def test_after_a_reboot_pods_are_not_ready_and_containers_have_ended(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        made = [here.spec() for _ in range(20)]
        pods = [here.runtime.run_sandbox(spec, Deadline.after(60)) for spec in made]
        some = [
            here.runtime.create_container(pod, _named(here, spec, str(number)), Deadline.after(60))
            for pod, spec in zip(pods[:17], made, strict=False)
            for number in range(2)
        ]
        here.runtime.start_container(some[0], Deadline.after(60))
        here.close()
        _reboot(here.daemon)
        began = time.monotonic()
        here.open()
        assert time.monotonic() - began < patient(10)
        # New pods start at once, whatever the old ones still have to go through.
        fresh = here.runtime.run_sandbox(here.spec(), Deadline.after(5))
        until = time.monotonic() + 30
        while any(view.state is not State.TERMINATED for view in here.runtime.containers()) or any(
            view.ready for view in here.runtime.sandboxes() if view.id != fresh
        ):
            assert time.monotonic() < until, [str(view.state) for view in here.runtime.containers()]
            time.sleep(0.05)
        assert {view.exit_code for view in here.runtime.containers()} == {255}
        for pod in (*pods, fresh):
            here.runtime.remove_sandbox(pod, Deadline.after(30))
        here.assert_nothing_left("after a reboot")


def test_what_no_record_knows_is_removed_at_the_start(registry: Registry, busybox: str) -> None:
    with lab(registry, busybox) as here:
        here.close()
        root, state = Path(here.daemon.config.root), Path(here.daemon.config.state)
        (root / "containers" / ("a" * 64) / "upper").mkdir(parents=True)
        (state / "sandboxes" / ("b" * 64) / "ns").mkdir(parents=True)
        (state / "containers" / ("c" * 64)).mkdir(parents=True)
        here.open()
        here.assert_nothing_left("what no record knows")


def _named(here: Lab, spec: SandboxSpec, name: str) -> ContainerSpec:
    made = here.container(spec)
    return ContainerSpec(name=name, image=made.image, command=made.command, security=made.security)


def _reboot(daemon: Daemon) -> None:
    """No process, mount, link, cgroup or file below the state directory outlives one."""
    marks = leaks.Marks(daemon.config.state, daemon.config.network.link_prefix, f"forgeone-{daemon.tag}")
    leaks.sweep(marks, daemon.config.network.bridge, daemon.config.network.table)
    until = time.monotonic() + 10
    while list(leaks.processes(marks, ())) and time.monotonic() < until:
        time.sleep(0.05)
    leaks.sweep(marks, daemon.config.network.bridge, daemon.config.network.table)
    with suppress(FileNotFoundError):
        shutil.rmtree(daemon.config.state)
