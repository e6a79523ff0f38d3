"""Steps carried out on a node, and undone: thin, as the steps say all there is to decide."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError
from forgeone_shim.node import bundle, files, health, kubelet, layout, versions
from forgeone_shim.node.journal import Journal, Outcome, Store
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.steps import (
    Do,
    File,
    Healthy,
    Link,
    Ready,
    Settle,
    Step,
    Sweep,
    Tree,
    Unit,
    Vacate,
    said,
)

UNDO_SECONDS: Final = 180.0
"""For putting back what was, however little time the caller had left."""

_VACATE_SECONDS: Final = 75.0
_AT_ONCE: Final = 16
"""Pods that are stopped at a time, as most of them only wait for their grace to end."""

DONE: Final = "done"
UNDONE: Final = "undone"
STUCK: Final = "stuck"


@dataclass(frozen=True, slots=True)
class Pod:
    """A sandbox of a runtime; ``uid`` is Kubernetes'."""

    id: str
    uid: str
    namespace: str
    name: str
    running: bool


class Runtimes(Protocol):
    """The CRI sockets of a node, by paths as this process sees them."""

    def ready(self, socket: Path, version: str, deadline: Deadline) -> None:
        """Wait until forgeoned of that version is ready. FailedPrecondition: it is not, and why."""

    def pods(self, socket: Path, deadline: Deadline) -> tuple[Pod, ...]:
        """The sandboxes. Unavailable: nobody answers."""

    def remove(self, socket: Path, pod: str, grace: int, deadline: Deadline) -> None:
        """Stop a sandbox's containers, each within ``grace`` seconds, and remove it."""


class Services(Protocol):
    """What is asked of systemd; see :class:`forgeone_shim.node.systemd.Systemd`."""

    def reload(self, deadline: Deadline) -> None:
        """Read all units anew."""

    def job(self, do: Do, unit: str, deadline: Deadline) -> None:
        """Start, restart or stop a unit and wait."""

    def queue(self, do: Do, unit: str, deadline: Deadline) -> None:
        """The same without waiting."""

    def active(self, unit: str, deadline: Deadline) -> bool:
        """Whether a unit runs."""

    def main_pid(self, unit: str, deadline: Deadline) -> int:
        """A service's main process."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Does and undoes steps on one node. ``tell`` hears of each as it begins."""

    node: Layout
    store: Store
    services: Services
    runtimes: Runtimes
    tell: Callable[[str], None] = lambda _: None

    def carry_out(self, journal: Journal, deadline: Deadline) -> None:
        """Every step, or none: what was begun is undone when one fails, or this process is told to end.

        :raises ForgeError: one failed, and all is as it was.
        :raises InternalError: it could not be undone; the journal stays, and the next run tries again.
        """
        try:
            for number, step in enumerate(journal.steps, 1):
                deadline.check(f"before: {said(step)}")
                journal = msgspec.structs.replace(journal, begun=number)
                self.store.keep(journal)
                self.tell(said(step))
                self._do(step, deadline)
            journal = msgspec.structs.replace(journal, finished=True)
            self.store.keep(journal)
        except BaseException as error:
            reason = str(error) if isinstance(error, ForgeError) else f"{type(error).__name__} {error}".strip()
            self.undo(journal, reason)
            raise
        self.finish(journal)

    def recover(self, *, wait: bool = True) -> bool:
        """Finish or undo what a run that was killed has left; whether there was any. The lock must be held.

        :param wait: for systemd's jobs; what runs at boot, before them, must not.
        :raises InternalError: it cannot be undone.
        """
        journal = self.store.journal()
        if journal is None:
            return False
        if journal.finished:
            self.finish(journal)
        else:
            self.undo(journal, "it was killed", wait=wait)
        return True

    def undo(self, journal: Journal, reason: str, *, wait: bool = True) -> None:
        """Everything that was begun, from the last to the first, and nothing beyond one that fails: a runtime is not to
        be taken away while the kubelet still uses it, nor the kubelet pointed at one that does not start.

        :raises InternalError: one failed, so that the journal stays.
        """
        deadline = Deadline.after(UNDO_SECONDS)
        for step in reversed(journal.steps[: journal.begun]):
            try:
                self._undo(step, deadline, wait=wait)
            except (ForgeError, OSError) as error:
                failed = f"{said(step)}: {error}"
                self.store.keep(Outcome(journal.verb, STUCK, f"{reason}; {failed}"))
                fix = "mend that and run forge node again, which tries once more"
                raise InternalError(f"{reason}, and it could not be undone: {failed}", fix=fix) from None
        self.store.keep(Outcome(journal.verb, UNDONE, reason))
        self.store.forget_journal()

    def finish(self, journal: Journal) -> None:
        """Write down what is installed now, and remove what is of no use any more."""
        if journal.record is None:
            self.store.forget_record()
        else:
            self.store.keep(journal.record)
        for path in journal.after:
            # Disk that is not freed now is freed by the next run.
            with contextlib.suppress(ForgeError):
                versions.remove(self.node.at(path))
        self.store.keep(Outcome(journal.verb, DONE))
        self.store.forget_journal()

    def _do(self, step: Step, deadline: Deadline) -> None:
        match step:
            case Tree(source=source, digest=digest, replaces=replaces):
                found = bundle.read(Path(source))
                if found.digest != digest:
                    raise FailedPrecondition(f"{source} has changed since it was looked at")
                versions.lay_out(self.node, found, replaces=replaces, deadline=deadline)
            case File(path=path, new=new, old=old, mode=mode):
                self._write(path, new, expected=old, mode=mode)
            case Link(path=path, new=new):
                self._link(path, new)
            case Unit(do=Do.RELOAD):
                self.services.reload(deadline)
            case Unit(do=do, unit=unit):
                self.services.job(do, unit, deadline)
            case Settle() | Vacate():
                pass
            case Ready(version=version):
                self.runtimes.ready(self.node.at(layout.SOCKET), version, deadline)
            case Healthy(address=address, port=port) if port:
                health.healthz(address, port, deadline)
            case Healthy():
                health.stays(lambda: self.services.main_pid(kubelet.UNIT, deadline), deadline)
            case Sweep():
                self._sweep(step, deadline)

    def _undo(self, step: Step, deadline: Deadline, *, wait: bool) -> None:
        match step:
            case Tree(version=version, replaces=replaces):
                versions.take_back(self.node, version, replaces=replaces)
            case File(path=path, new=new, old=old, mode=mode):
                # Somebody else's change since then is not ours to undo.
                if files.read(self.node.at(path, follow=True)) == new:
                    self._write(path, old, expected=new, mode=mode)
            case Link(path=path, new=new, old=old):
                if files.readlink(self.node.at(path)) == new:
                    self._link(path, old)
            case Settle(unit=unit, active=active):
                self.services.reload(deadline)
                ask = self.services.job if wait else self.services.queue
                ask(Do.RESTART if active else Do.STOP, unit, deadline)
            case Vacate(socket=socket, beside=beside):
                # No pod outlives a boot.
                if wait:
                    self.services.job(Do.STOP, kubelet.UNIT, deadline)
                    with deadline.within(_VACATE_SECONDS) as soon, contextlib.suppress(ForgeError):
                        self._sweep(Sweep(socket, beside, strict=False), soon)
            case Unit() | Ready() | Healthy() | Sweep():
                pass

    def _write(self, path: str, content: bytes | None, *, expected: bytes | None, mode: int) -> None:
        place = self.node.at(path, follow=True)
        if files.read(place) != expected:
            raise FailedPrecondition(f"{path} has changed since it was looked at")
        if content is None:
            files.remove(place)
        else:
            files.replace(place, content, mode=mode)

    def _link(self, path: str, target: str | None) -> None:
        place = self.node.at(path)
        if target is None:
            files.remove(place)
        else:
            files.link(place, target)

    def _sweep(self, step: Sweep, deadline: Deadline) -> None:
        socket = self.node.at(step.socket, follow=True)
        beside = self.node.at(step.beside, follow=True) if step.beside else None
        try:
            pods = own_pods(self.runtimes, socket, beside, deadline)
        except ForgeError as error:
            if step.strict:
                raise
            self.tell(f"  pods are not known, and stay: {error}")
            return
        if step.refuse and (running := names(pods)):
            raise FailedPrecondition(f"{step.socket} has pods that run: {', '.join(running[:5])}")

        def remove(pod: Pod) -> ForgeError | None:
            try:
                self.tell(f"  {pod.namespace}/{pod.name}")
                self.runtimes.remove(socket, pod.id, step.grace, deadline)
            except ForgeError as error:
                self.tell(f"  {pod.namespace}/{pod.name} stays: {error}")
                return error
            return None

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                failed = [error for error in pool.map(remove, pods) if error is not None]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if failed and (step.strict or deadline.passed):
            raise failed[0]


def names(pods: Sequence[Pod]) -> tuple[str, ...]:
    """Those that run, for people."""
    return tuple(f"{pod.namespace}/{pod.name}" for pod in pods if pod.running)


def own_pods(runtimes: Runtimes, socket: Path, beside: Path | None, deadline: Deadline) -> Sequence[Pod]:
    """The sandboxes of the runtime at ``socket`` itself; it may show those of the one ``beside`` it too.

    :raises Unavailable: one of the two does not answer.
    """
    others = {pod.id for pod in runtimes.pods(beside, deadline)} if beside is not None else set[str]()
    return [pod for pod in runtimes.pods(socket, deadline) if pod.id not in others]
