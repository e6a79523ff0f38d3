"""The keeper: the process that has a pod's machine. Forked by a fork server, one thread, until the machine's end.

It belongs to nobody: forgeoned and the fork server may come and go. Should it be killed itself, the kernel kills the
monitor and the file server. When the machine ends, or its guest says what the protocol does not have, the exits of all
containers are told, and nothing is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.microvm.keeper import clients, orders
from engines.microvm.keeper.agent import Agent, AgentSilent, ChannelEnded, clean
from engines.microvm.keeper.clients import Clients
from engines.microvm.keeper.notes import Notes
from engines.microvm.keeper.orders import Done, Launch, Launched
from engines.microvm.keeper.pod import Pod
from engines.microvm.keeper.volumes import FilesEnded, Volumes
from engines.microvm.keeper.volumes import Launch as LaunchFiles
from engines.microvm.vmm.base import Event, Template, Vmm
from engines.microvm.wire import fields, messages
from engines.microvm.wire.fields import ProtocolError
from engines.microvm.wire.messages import Failed, Greeting
from engines.microvm.wire.protocol import CONTROL_PORT, SHARE_PORT, VERSION, Kind
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError, syscall_error
from forgeone_shim.kernel import procs
from forgeone_shim.shim import supervision, titles, wire
from forgeone_shim.shim.channel import failure
from forgeone_shim.shim.loop import Loop
from forgeone_shim.shim.supervision import Ending, shortened

_SAFE_FROM_OOM: Final = "-1000"
_IGNORED: Final = tuple(map(int, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)))
_LOST_CODE: Final = 255
# For who is attached to read the last of it, and for a full disk to have room for an exit file.
_LEAVE_SECONDS: Final = 130.0
_ENDS_MS: Final = 2000
_libc = ctypes.CDLL(None, use_errno=True)


class MachineEnded(Exception):
    """The monitor has ended, or stopped its machine; why, as it says."""


class Stopped(Exception):
    """Somebody asked for the end."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a keeper makes a machine's monitor, and its file server, with, and what gives up the means to."""

    vmm: Callable[[], Vmm]
    files: LaunchFiles
    confine: Callable[[], None]


def keep(asked: Launch, fds: list[int], means: Means, connection: socket.socket) -> None:
    """Be the keeper: the child function of a :class:`forgeone_shim.shim.forks.Fork`. ``fds``: see :class:`Launch`."""
    try:
        Keeper(asked, means).run(fds, connection)
    except Exception as error:
        refuse(connection, "launch", error)


def refuse(connection: socket.socket, step: str, error: Exception) -> None:
    """Tell a client, which may have gone, why there is nothing."""
    kind, message = failure(error)
    failed = supervision.Failed(step=step, error=kind, message=shortened(message))
    with contextlib.suppress(OSError, wire.ProtocolError):
        wire.send(connection, orders.encode(failed))


class Keeper:
    """One, whose descriptors are left to the end of its process."""

    def __init__(self, asked: Launch, means: Means) -> None:
        self._asked, self._means = asked, means
        self._loop = Loop()
        self._deadline = Deadline.after(asked.seconds)
        self._agent: Agent
        self._pod: Pod

    def run(self, fds: list[int], connection: socket.socket) -> None:
        """Until the machine has ended. Raises what kept it from being made; then nothing is left of it."""
        with contextlib.ExitStack() as end:
            # One whose request waited longer than its client did: what is in the directory may be another's.
            if _hung_up(connection):
                return
            self._begin(end)
            vmm = self._means.vmm()
            end.callback(vmm.stop)
            self._start(vmm, fds)
            self._connect(vmm, end)
            self._means.confine()
            launched = self._greet(connection)
            if launched is None or _hung_up(connection):
                return
            self._open(launched, connection, end)
            code, why = self._serve(vmm)
            self._leave(vmm, code, why)

    # Its making

    def _begin(self, end: contextlib.ExitStack) -> None:
        asked = self._asked
        become((orders.TITLE, asked.sandbox_id, asked.directory), asked.cgroups)
        self._started = _started(os.getpid())
        # From here on whoever wants this to end finds it.
        note = Path(asked.directory, orders.PIDFILE)
        try:
            draft = note.with_suffix(".new")
            draft.write_text(f"{os.getpid()} {self._started}\n")
            draft.rename(note)
        except OSError as error:
            raise syscall_error("write", note, error) from error
        end.callback(note.unlink, missing_ok=True)

    def _start(self, vmm: Vmm, fds: list[int]) -> None:
        asked = self._asked
        left = iter(fds)
        tap = next(left) if asked.tap else -1
        template = Template(memory=next(left), state=next(left)) if asked.template else None
        vmm.start(asked.machine, tap, asked.who, self._deadline, template)
        wire.close_all(fds)

    def _connect(self, vmm: Vmm, end: contextlib.ExitStack) -> None:
        asked = self._asked
        channels = vmm.channels()
        control, share = channels.get(CONTROL_PORT), channels.get(SHARE_PORT)
        if control is None or share is None:
            raise InternalError(f"the monitor has no ports {CONTROL_PORT} and {SHARE_PORT}")
        self._notes = Notes(Path(asked.directory, orders.LOG))
        self._agent = Agent(self._loop, control, self._notes.add)
        try:
            self._volumes = Volumes(self._loop, share, self._means.files)
        except OSError as error:
            raise syscall_error("start", "the file server", error) from error
        end.callback(self._volumes.close)
        self._watched = vmm.fds
        for fd in self._watched:
            self._loop.watch(fd, lambda _: self._happened(vmm))
        self._monitor = vmm.pid, _started(vmm.pid)
        self._pod = Pod(
            self._loop,
            self._agent,
            vmm,
            self._volumes,
            keeper=(os.getpid(), self._started),
            monitor=self._monitor,
        )

    def _happened(self, vmm: Vmm) -> None:
        # Whatever it is, the machine is not what it was.
        for event in vmm.events():
            raise MachineEnded(told(event))

    def _greet(self, connection: socket.socket) -> Launched | None:
        """Wait for the agent's answer, for as long as the client waits; ``None``: it has gone."""
        gone: list[int] = []
        # Nothing but an end comes from a client that waits for its answer.
        self._loop.watch(connection.fileno(), gone.append)
        try:
            found = greet(self._loop, self._agent, self._deadline, gone)
        finally:
            self._loop.leave(connection.fileno())
        if found is None:
            return None
        return Launched(
            pid=os.getpid(),
            started=self._started,
            monitor_pid=self._monitor[0],
            monitor_started=self._monitor[1],
            release=clean(found.release),
            features=tuple(map(clean, found.features)),
        )

    # While it is there

    def _open(self, launched: Launched, connection: socket.socket, end: contextlib.ExitStack) -> None:
        where = self._asked.directory
        try:
            directory = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            listener = clients.listen(directory, orders.SOCKET)
        except OSError as error:
            raise syscall_error("listen", f"{where}/{orders.SOCKET}", error) from error
        end.callback(Path(where, orders.SOCKET).unlink, missing_ok=True)
        self._clients = Clients(self._loop, listener, self._pod.handle)
        launcher = self._clients.take(connection)
        launcher.when_gone = self._launched
        launcher.answer(launched)

    def _launched(self, heard: bool) -> None:
        """Whoever asked for it has read its answer and goes, or goes without."""
        if not heard:
            raise Stopped

    def _serve(self, vmm: Vmm) -> tuple[int, Ending | None]:
        """Until the machine's end; what its containers' exit code is, and why."""
        try:
            while not self._pod.stopping:
                self._turn()
        except (MachineEnded, ChannelEnded) as error:
            return orders.KILLED_CODE, Ending(reason=orders.VM_DIED, message=self._last_words(vmm, error))
        except FilesEnded as error:
            return orders.KILLED_CODE, Ending(reason=orders.VM_DIED, message=shortened(str(error)))
        except ProtocolError as error:
            return orders.KILLED_CODE, Ending(reason=orders.GUEST_PROTOCOL, message=shortened(clean(str(error))))
        except AgentSilent as error:
            return orders.KILLED_CODE, Ending(reason=orders.GUEST_SILENT, message=shortened(str(error)))
        except Stopped:
            pass
        except Exception as error:
            # Something that was not thought of: without its keeper the machine is not to go on.
            return _LOST_CODE, Ending(reason="SupervisorFailed", message=shortened(f"{type(error).__name__}: {error}"))
        return orders.KILLED_CODE, None

    def _turn(self) -> None:
        waits = [one for one in (self._pod.wait(), self._agent.wait()) if one is not None]
        self._loop.turn(min(waits, default=None))
        self._agent.check()
        self._pod.mind()

    def _last_words(self, vmm: Vmm, error: Exception) -> str:
        """What the monitor said, and whether it was for memory."""
        said = str(error)
        if isinstance(error, ChannelEnded):
            # The end of its process may be noticed after that of its sockets.
            poll = select.poll()
            for fd in self._watched:
                poll.register(fd, select.POLLIN)
            poll.poll(_ENDS_MS)
            said = "; ".join(told(event) for event in vmm.events()) or said
        if out_of_memory(self._asked.who.cgroups):
            said = f"the pod's memory limit was too low for its machine: {said}"
        return shortened(said)

    def _leave(self, vmm: Vmm, code: int, why: Ending | None) -> None:
        """Tell all exits."""
        if why is not None:
            self._notes.add(f"{why.reason}: {why.message}")
        for fd in self._watched:
            self._loop.leave(fd)
        vmm.stop()
        with contextlib.suppress(Exception):
            self._agent.drain()
        self._agent.close()
        self._pod.end(code, why, oom=why is not None and out_of_memory(self._asked.who.cgroups))
        for client in self._pod.stopping:
            client.answer(Done())
        self._clients.close()
        left = Deadline.after(_LEAVE_SECONDS)
        while not self._pod.settled and not left.passed:
            self._loop.turn(left.remaining(self._pod.wait()))
            self._pod.mind()


def become(title: Sequence[str], cgroups: Sequence[str]) -> None:
    """What a process that has a machine does first.

    :raises InternalError: it cannot join a cgroup.
    """
    os.setsid()
    for number in _IGNORED:
        # Not by Python's function, whose enumerations cost pages that were shared until then.
        _libc.signal(number, ctypes.c_void_p(signal.SIG_IGN))
    gc.freeze()
    gc.enable()
    titles.rename(titles.area(), title)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_SAFE_FROM_OOM)
    for directory in cgroups:
        try:
            Path(directory, "cgroup.procs").write_text("0")
        except OSError as error:
            raise syscall_error("write", f"{directory}/cgroup.procs", error) from error


def greet(loop: Loop, agent: Agent, deadline: Deadline, gone: Sequence[object] = ()) -> Greeting | None:
    """Wait for a machine's agent; ``None`` once there is something in ``gone``.

    :raises InternalError: the machine has ended, or whoever answers is no agent of this version.
    :raises DeadlineExceeded: nobody answers.
    """
    answer = ask(loop, agent, (Kind.HELLO, fields.encode(messages.Hello(version=VERSION))), deadline, gone)
    if answer is None:
        return None
    try:
        greeting = fields.decode(Greeting, answer)
    except ProtocolError as error:
        raise InternalError(f"the machine's agent is none: {error}") from error
    if greeting.version != VERSION:
        raise InternalError(f"the machine's agent speaks version {greeting.version} of the protocol, not {VERSION}")
    return greeting


def ask(
    loop: Loop, agent: Agent, question: tuple[Kind, bytes], deadline: Deadline, gone: Sequence[object] = ()
) -> bytes | None:
    """Ask the agent, and wait; otherwise as :func:`greet`."""
    answers: list[bytes | Failed] = []
    agent.request(*question, answers.append)
    try:
        while not answers and not gone:
            deadline.check("before the machine's agent answered")
            loop.turn(deadline.remaining())
    except (MachineEnded, ChannelEnded, FilesEnded) as error:
        raise InternalError(f"the machine ended before its agent answered: {error}") from error
    except ProtocolError as error:
        raise InternalError(f"the machine's agent is none: {error}") from error
    if gone:
        return None
    if isinstance(answers[0], Failed):
        raise InternalError(f"the machine's agent refuses: {clean(answers[0].message)}")
    return answers[0]


def told(event: Event) -> str:
    """An event as a clause."""
    return f"{event.name}: {clean(event.message)}" if event.message else event.name


def out_of_memory(cgroups: Sequence[str]) -> bool:
    """Whether the kernel has killed one of their processes for memory."""
    for directory in cgroups:
        for name in ("memory.events", "memory.oom_control"):
            try:
                lines = Path(directory, name).read_text().splitlines()
            except OSError:
                continue
            if any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in lines):
                return True
    return False


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _started(pid: int) -> int:
    """:raises InternalError: there is no such process."""
    seen = procs.stat(pid)
    if seen is None or seen.dead:
        raise InternalError(f"process {pid} of the machine died at once")
    return seen.started
