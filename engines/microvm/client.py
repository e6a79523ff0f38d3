"""The daemon's side of keepers: the fork server that they come from, and the orders that each takes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from engines.microvm.keeper import orders
from engines.microvm.keeper.orders import (
    Answer,
    Create,
    Created,
    Delete,
    Dial,
    Disk,
    Done,
    Exec,
    Executing,
    Freeze,
    Launch,
    Launched,
    Look,
    Order,
    Prepare,
    Prepared,
    Save,
    Seen,
    Setup,
    Signal,
    Start,
    Stats,
    Stop,
    Update,
    Volume,
)
from engines.microvm.vmm.base import Template
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ForgeError,
    InternalError,
    InvalidInput,
    Kind,
    NotFound,
    syscall_error,
)
from forgeone_shim.kernel import procs
from forgeone_shim.kernel.procs import Pidfd, open_process
from forgeone_shim.shim import contract, wire
from forgeone_shim.shim.client import ForkServer
from forgeone_shim.shim.programs import Program
from forgeone_shim.shim.supervision import Failed, Supervision
from forgeone_shim.shim.wire import ProtocolError
from forgeone_shim.version import VERSION

_MODULE: Final = "engines.microvm.zygote"
_PACKAGES: Final = ("forgeone_shim", "engines", "msgspec")
# For what takes milliseconds, and seconds where the host is busy; a caller's own deadline may be earlier. By then a
# keeper has ended a machine whose agent does not answer to a signal.
_ANSWER_SECONDS: Final = 75.0
_KILL_SECONDS: Final = 10.0
# For a fork server to be started, and to say that a machine took too long.
_MORE_SECONDS: Final = 15.0
# A timeout of 0 would mean another thing to a socket.
_TICK: Final = 0.001
_Expected = TypeVar("_Expected", bound=msgspec.Struct)


class Keepers:
    """The fork server of keepers, one per daemon; thread-safe. It is started by the first request, or found."""

    def __init__(self, directory: Path) -> None:
        self._server = ForkServer(directory, Program(_MODULE, _PACKAGES, f"{VERSION}-{orders.VERSION}"))

    def launch(self, asked: Launch, deadline: Deadline, *, tap: int = -1, template: Template | None = None) -> Launched:
        """A keeper and its machine, whose agent has answered. On any error nothing is left of them.

        The descriptors stay the caller's. ``asked.tap`` and ``asked.template`` are as what is given.

        :raises DeadlineExceeded: the caller's time was over, or ``asked.seconds``.
        """
        fds = ([tap] if tap >= 0 else []) + ([template.memory, template.state] if template is not None else [])
        asked = msgspec.structs.replace(asked, tap=tap >= 0, template=template is not None)
        data, back = self._server.ask(orders.encode(asked), fds, deadline, seconds=asked.seconds + _MORE_SECONDS)
        wire.close_all(back)
        return _expect(data, Launched, f"launch the machine of sandbox {asked.sandbox_id}")

    def save(self, asked: Save, deadline: Deadline, *, memory: int, state: int) -> None:
        """Boot a machine and save it into these files; errors as :meth:`launch`."""
        data, back = self._server.ask(
            orders.encode(asked), (memory, state), deadline, seconds=asked.seconds + _MORE_SECONDS
        )
        wire.close_all(back)
        _expect(data, Done, f"save machine {asked.name}")

    def ensure(self) -> None:
        """Have the fork server run, so that the first request need not wait for its start."""
        self._server.ensure()

    def close(self) -> None:
        """No more will be asked; the fork server ends soon, keepers go on."""
        self._server.close()


class Keeper:
    """The keeper of one sandbox, whose state directory is ``directory``; holds nothing open, thread-safe.

    Every method raises FailedPrecondition where the pod has no machine (any more), DeadlineExceeded where the answer
    was late, and what the agent refuses as InvalidInput of the field it named, or InternalError.
    """

    def __init__(self, sandbox_id: str, directory: str) -> None:
        self._sandbox_id, self._directory = sandbox_id, directory

    def process(self) -> Pidfd | None:
        """The keeper's, if it lives: the number is trusted only with its start time. The caller closes it."""
        try:
            pid, started = map(int, Path(self._directory, orders.PIDFILE).read_text().split())
        except (OSError, ValueError):
            return None
        return open_process(pid, started)

    def alive(self) -> bool:
        """Whether the keeper lives, which ends with its machine."""
        held = self.process()
        if held is None:
            return False
        with held:
            seen = procs.stat(held.pid)
            # Its machine may be gone a moment before it is.
            return seen is not None and not seen.exiting

    def setup(self, payload: bytes, deadline: Deadline) -> bytes:
        """The machine becomes the pod's; what the agent answered."""
        return self._done(Setup(payload), "set up the machine", deadline)

    def creation(self, container_id: str, deadline: Deadline) -> Creation:
        """For one container: a context that takes back all it did unless :meth:`Creation.create` succeeded in it."""
        return Creation(self._connect(deadline), container_id, deadline)

    def start(self, container_id: str, deadline: Deadline) -> None:
        """Let a created container run.

        :raises NotFound: there is none.
        :raises FailedPrecondition: it runs, or has ended.
        """
        self._done(Start(container_id), f"start container {container_id}", deadline)

    def signal(self, container_id: str, number: int, deadline: Deadline, *, everything: bool = False) -> None:
        """Of the container's first process, or of all; one that has ended, or a pod without a machine, is no error."""
        asked = Signal(container_id=container_id, signal=number, everything=everything)
        with contextlib.suppress(_NoKeeper):
            self._done(asked, f"signal container {container_id}", deadline)

    def update(self, container_id: str, payload: bytes, deadline: Deadline) -> None:
        """Limits in the guest: fields of :attr:`Kind.UPDATE`."""
        asked = Update(container_id=container_id, payload=payload)
        self._done(asked, f"update container {container_id}", deadline)

    def freeze(self, container_id: str, deadline: Deadline, *, on: bool) -> None:
        """Returns when none of the container's processes runs any more, or all may again."""
        self._done(Freeze(container_id=container_id, on=on), f"freeze container {container_id}", deadline)

    def stats(self, deadline: Deadline, payload: bytes = b"") -> bytes:
        """The agent's answer to :attr:`Kind.STATS`."""
        return self._done(Stats(payload), "measure the pod", deadline)

    def delete(self, container_id: str, deadline: Deadline) -> None:
        """End the container, and forget it; one that is not there, or a pod without a machine, is no error."""
        with contextlib.suppress(_NoKeeper):
            self._done(Delete(container_id), f"delete container {container_id}", deadline)

    def execute(self, container_id: str, payload: bytes, streams: dict[int, int], deadline: Deadline) -> socket.socket:
        """Start a command in a container; ``streams`` are its ends by number, which stay the caller's.

        Returns the connection by which it is resized (:meth:`resize`) and its end is told (:class:`orders.Ended`);
        closing it kills the command.
        """
        asked = Exec(container_id=container_id, payload=payload, streams=tuple(streams))
        doing = f"exec in container {container_id}"
        with contextlib.ExitStack() as undo:
            connection = undo.enter_context(self._connect(deadline))
            _expect(self._converse(connection, asked, tuple(streams.values()), deadline), Executing, doing)
            undo.pop_all()
        return connection

    def dial(self, port: int, deadline: Deadline) -> socket.socket:
        """A connected stream socket that leads to a TCP port of the machine's loopback.

        :raises Unavailable: nobody listens there.
        """
        with self._connect(deadline) as connection:
            data, fds = self._ask(connection, Dial(port), (), deadline)
            with contextlib.ExitStack() as undo:
                undo.callback(wire.close_all, fds)
                _expect(data, Done, f"dial port {port} of sandbox {self._sandbox_id}")
                if len(fds) != 1:
                    raise InternalError(f"the keeper of sandbox {self._sandbox_id} sent no connection")
                undo.pop_all()
        return socket.socket(fileno=fds[0])

    def look(self, deadline: Deadline) -> Seen:
        """The pod as its keeper knows it."""
        with self._connect(deadline) as connection:
            return _expect(self._converse(connection, Look(), (), deadline), Seen, "look at the machine")

    def stop(self, deadline: Deadline) -> None:
        """End the machine and all in it, and wait for the keeper's end; no keeper is no error.

        One that does not obey is killed, and its monitor with it.
        """
        held = self.process()
        if held is None:
            return
        with held:
            with contextlib.suppress(ForgeError):
                self._done(Stop(), "stop the machine", deadline)
                if held.wait(_KILL_SECONDS):
                    return
            held.send(signal.SIGKILL)
            if not held.wait(_KILL_SECONDS):
                raise InternalError(f"the keeper of sandbox {self._sandbox_id} does not die (pid {held.pid})")

    def _done(self, order: Order, doing: str, deadline: Deadline) -> bytes:
        with self._connect(deadline) as connection:
            return _expect(self._converse(connection, order, (), deadline), Done, doing).payload

    def _converse(self, connection: socket.socket, order: Order, fds: Sequence[int], deadline: Deadline) -> bytes:
        data, back = self._ask(connection, order, fds, deadline)
        wire.close_all(back)
        return data

    def _ask(
        self, connection: socket.socket, order: Order, fds: Sequence[int], deadline: Deadline
    ) -> tuple[bytes, list[int]]:
        return exchange(connection, order, fds, deadline, self._sandbox_id)

    def _connect(self, deadline: Deadline) -> socket.socket:
        deadline.check("before the keeper was asked")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            try:
                at = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, at)
                connection.settimeout(max(_TICK, deadline.remaining(_ANSWER_SECONDS) or 0.0))
                connection.connect(f"/proc/self/fd/{at}/{orders.SOCKET}")
            except (FileNotFoundError, ConnectionError) as error:
                raise _NoKeeper(self._sandbox_id) from error
            except TimeoutError as error:
                raise DeadlineExceeded(f"the keeper of sandbox {self._sandbox_id} takes no orders") from error
            except OSError as error:
                raise syscall_error("connect", f"{self._directory}/{orders.SOCKET}", error) from error
            os.close(at)
            undo.pop_all()
        return connection


class Creation:
    """The making of one container: :meth:`prepare` as often as it takes, then :meth:`create`."""

    def __init__(self, connection: socket.socket, container_id: str, deadline: Deadline) -> None:
        self._connection, self._container_id, self._deadline = connection, container_id, deadline

    def prepare(self, disks: Sequence[tuple[Disk, int]] = (), volumes: Sequence[tuple[Volume, int]] = ()) -> Prepared:
        """Plug disks in and share volumes, each given with its descriptor, which stays the caller's.

        More of them than one message takes are asked for in several.
        """
        luns: list[int] = []
        paths: list[str] = []
        left_disks, left_volumes = list(disks), list(volumes)
        while left_disks or left_volumes:
            now_disks = left_disks[: wire.DESCRIPTORS_MAX]
            now_volumes = left_volumes[: wire.DESCRIPTORS_MAX - len(now_disks)]
            del left_disks[: len(now_disks)], left_volumes[: len(now_volumes)]
            asked = Prepare(
                container_id=self._container_id,
                disks=tuple(disk for disk, _ in now_disks),
                volumes=tuple(volume for volume, _ in now_volumes),
            )
            fds = [fd for _, fd in (*now_disks, *now_volumes)]
            found = _expect(self._say(asked, fds), Prepared, f"create container {self._container_id}")
            luns += found.luns
            paths += found.volumes
        return Prepared(luns=tuple(luns), volumes=tuple(paths))

    def create(self, supervision: Supervision, payload: bytes, *, oom_score_adj: int = 0) -> Created:
        """The container, held before its first instruction, and supervised: its bundle is as conmon's contract says.

        ``payload``: fields of :attr:`Kind.CREATE` but PROCESS, with CONTAINER. A fault of the guest's in them is
        InvalidInput of the field that the agent named. ``oom_score_adj``: the machine's, on the host.
        """
        asked = Create(supervision=supervision, payload=payload, oom_score_adj=oom_score_adj)
        return _expect(self._say(asked, ()), Created, f"create container {self._container_id}")

    def _say(self, order: Order, fds: Sequence[int]) -> bytes:
        data, back = exchange(self._connection, order, fds, self._deadline, self._container_id)
        wire.close_all(back)
        return data

    def close(self) -> None:
        """Takes back what no container was created with."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _NoKeeper(FailedPrecondition):
    def __init__(self, sandbox_id: str) -> None:
        super().__init__(f"sandbox {sandbox_id} has no machine any more")


def exchange(
    connection: socket.socket, order: Order, fds: Sequence[int], deadline: Deadline, whose: str
) -> tuple[bytes, list[int]]:
    """Say an order and wait for what is answered to it; the descriptors that came are the caller's.

    :raises DeadlineExceeded: no answer in time, or the caller went away.
    """

    def hang_up() -> None:
        # It may have ended by itself, or be told twice.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    deadline.check("before the keeper was asked")
    data = orders.encode(order)
    try:
        wire.check(data, fds)
    except ProtocolError as error:
        raise InvalidInput("request", str(error)) from error
    deadline.listen(hang_up)
    try:
        connection.settimeout(max(_TICK, deadline.remaining(_ANSWER_SECONDS) or 0.0))
        wire.send(connection, data, fds)
        message = wire.receive(connection)
        return bytes(message.data), message.take()
    except TimeoutError as error:
        raise DeadlineExceeded(f"the keeper of {whose} did not answer in time") from error
    except ProtocolError as error:
        raise InternalError(f"the answer of the keeper of {whose} cannot be read: {error}") from error
    except (wire.Ended, ConnectionError) as error:
        deadline.check("while the keeper was asked")
        raise _NoKeeper(whose) from error
    except OSError as error:
        raise InternalError(f"ask the keeper of {whose}: {error.strerror or error}") from error
    finally:
        deadline.ignore(hang_up)


def resize(connection: socket.socket, width: int, height: int) -> None:
    """Of an executed command's terminal; one that has ended is no error."""
    with contextlib.suppress(OSError):
        wire.send(connection, orders.encode(orders.Resize(width=width, height=height)))


def read_answer(data: bytes | bytearray) -> Answer:
    """:raises InternalError: it is none."""
    try:
        return orders.decode_answer(data)
    except ProtocolError as error:
        raise InternalError(f"the keeper's answer cannot be read: {error}") from error


def _expect(data: bytes, kind: type[_Expected], doing: str) -> _Expected:
    answer = read_answer(data)
    if isinstance(answer, kind):
        return answer
    if not isinstance(answer, Failed):
        raise InternalError(f"{doing}: the keeper answers {type(answer).__name__}")
    if answer.error == Kind.NOT_FOUND:
        raise NotFound("container", answer.message)
    if answer.error == Kind.DEADLINE:
        raise DeadlineExceeded(answer.message)
    if answer.error == Kind.INTERNAL:
        raise InternalError(f"{doing}: {answer.step}: {answer.message}")
    raise contract.create_error("", answer)
