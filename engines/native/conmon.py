"""conmon, the supervisor of a container: started, listened to until the container is there, and found again."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import select
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.base import ContainerPlan
from engines.native import logs
from engines.native.sealed import SealedProgram
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ForgeError,
    InternalError,
    InvalidInput,
    syscall_error,
)
from forgeone_shim.kernel.inotify import IN_ATTRIB, IN_CREATE, IN_MOVED_TO
from forgeone_shim.kernel.spawn import spawn
from forgeone_shim.shim import contract, supervision

PIDFILE = logs.CONTAINER_PIDFILE
CONMON_PIDFILE = supervision.SUPERVISOR_PIDFILE
# What conmon leaves in a bundle.
FILES = (
    PIDFILE,
    CONMON_PIDFILE,
    supervision.CONTROL,
    contract.SIZES,
    supervision.ATTACH,
    supervision.OOM_MARKER,
    "exit",
)
_SYNC_FD = 3
_REPORT_MAX = 64 * 1024
# crun's words for a command that cannot be executed: the caller's mistake, not the host's.
_NOT_ID_MAPPED = re.compile(r"mount_setattr `(.*)`: (.*)")
_COMMAND_ERRORS = ("executable file", "open executable", "exec:", "cannot chdir", "chdir")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Absolute paths of the programs, and what crun is always given."""

    crun: SealedProgram
    conmon: str
    init: str
    crun_arguments: tuple[str, ...]
    environment: Mapping[str, str]


def arguments(
    plan: ContainerPlan, programs: Programs, log_path: str, log_size_max: int = 0, more: Sequence[str] = ()
) -> list[str]:
    """conmon's command line for a container (conmon(8)) whose log is written to ``log_path``; ``more`` ends it."""
    if ":" in plan.log_path:
        raise InvalidInput("log_path", f"{plan.log_path!r} holds a colon, which ends a path for conmon")
    found = [
        "conmon",
        "--api-version",
        "1",
        "-c",
        plan.container_id,
        "-u",
        plan.container_id,
        "-r",
        programs.crun.path(),
    ]
    found += [f"--runtime-arg={argument}" for argument in programs.crun_arguments]
    found += ["-b", plan.bundle, "-p", f"{plan.bundle}/{PIDFILE}", "-P", f"{plan.bundle}/{CONMON_PIDFILE}"]
    found += ["--exit-dir", plan.exits, "--persist-dir", plan.bundle]
    found += ["-l", f"k8s-file:{log_path}" if log_path else "none", "--no-sync-log", "--full-attach"]
    if log_size_max:
        found.append(f"--log-size-max={log_size_max}")
    if plan.spec.tty:
        found.append("-t")
    if plan.spec.stdin:
        found.append("-i")
        if not plan.spec.stdin_once:
            found.append("--leave-stdin-open")
    return [*found, *more]


def create(
    plan: ContainerPlan, programs: Programs, log: logs.Limits, deadline: Deadline, more: Sequence[str] = ()
) -> int:
    """Start conmon, which creates the container; returns the container's first pid.

    On any error conmon and what it had started are dead or dying; what they left is the caller's to remove.
    """
    with logs.pumped(plan.bundle, plan.log_path, log, deadline) as log_path:
        # A pump minds the size too: conmon would put a file where its fifo is.
        size_max = 0 if log.rate else log.size_max
        return _create(plan, programs, arguments(plan, programs, log_path, size_max, more), deadline)


def _create(plan: ContainerPlan, programs: Programs, argv: Sequence[str], deadline: Deadline) -> int:
    with contextlib.ExitStack() as stack:
        sync, sync_child = _pipe(stack)
        errors, errors_child = _pipe(stack)
        environment = {**programs.environment, "_OCI_SYNCPIPE": str(_SYNC_FD)}
        try:
            # conmon writes an OOM marker into its working directory too.
            child = spawn(
                programs.conmon,
                argv,
                files={2: errors_child[0], _SYNC_FD: sync_child[0]},
                env=environment,
                cwd=plan.bundle,
            )
        except OSError as error:
            raise syscall_error("start", programs.conmon, error) from error
        with child:
            sync_child.close()
            errors_child.close()
            try:
                report, said = _listen(sync, errors, deadline)
            except ForgeError:
                # Once the first process has gone, the pid file of the one that stays is there.
                child.wait(1.0)
                contract.stop(plan.bundle, plan.container_id, patience=0.0)
                raise
            # It forks and exits at once; the copy that stays behind is init's child.
            child.wait()
    return _pid(report, said, plan.container_id)


class _End(list[int]):
    """A descriptor that is closed once, early or late."""

    def close(self) -> None:
        while self:
            os.close(self.pop())


def _pipe(stack: contextlib.ExitStack) -> tuple[int, _End]:
    read, write = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, read)
    end = _End([write])
    stack.callback(end.close)
    return read, end


def _listen(sync: int, errors: int, deadline: Deadline) -> tuple[bytes, bytes]:
    """Read the one line of the sync pipe; conmon keeps the pipe open, so its end is not waited for."""
    report, said = b"", b""
    poll = select.poll()
    for fd in (sync, errors):
        poll.register(fd, select.POLLIN)
    live = {sync, errors}
    while b"\n" not in report and sync in live and len(report) < _REPORT_MAX:
        left = deadline.remaining()
        events = poll.poll(None if left is None else int(left * 1000 + 0.999))
        if not events:
            raise DeadlineExceeded("deadline passed while the container was created")
        for fd, _ in events:
            chunk = os.read(fd, 4096)
            if not chunk:
                live.discard(fd)
                poll.unregister(fd)
            elif fd == sync:
                report += chunk
            elif len(said) < _REPORT_MAX:
                said += chunk
    return report, said


def _pid(report: bytes, said: bytes, container_id: str) -> int:
    try:
        found = json.loads(report) if report else {}
        pid = int(found.get("data", -1))
        message = str(found.get("message", ""))
    except (ValueError, AttributeError, TypeError) as error:
        raise InternalError(f"create container {container_id}: conmon reported {report[:200]!r}") from error
    if pid > 0:
        return pid
    message = (message or said.decode(errors="replace")).strip() or "crun failed without a word"
    raise create_error(container_id, message)


def create_error(container_id: str, message: str) -> ForgeError:
    """What crun said, as an error of the right kind."""
    text = message.splitlines()[-1].removeprefix("error: ") if message else message
    if refused := _NOT_ID_MAPPED.match(text):
        return FailedPrecondition(
            f"mounts: the file system of {refused[1]} cannot show it with other owners, as its id mappings demand: "
            f"{refused[2]}"
        )
    if text.startswith(_COMMAND_ERRORS):
        return InvalidInput("command", text)
    return InternalError(f"create container {container_id}: {text}")


def reopen_log(bundle: str, container_id: str, log_path: str) -> None:
    """Have the log file opened anew, and wait until it is.

    conmon renames a new file to the log's path; a pump touches it.
    """
    if not log_path:
        return

    def ask_pump() -> None:
        if not logs.reopen(bundle):
            raise FailedPrecondition(f"container {container_id} has nothing that writes its log any more")

    if Path(bundle, logs.FIFO).exists():
        contract.await_reopened(container_id, log_path, IN_ATTRIB, ask_pump)
    else:
        contract.await_reopened(
            container_id,
            log_path,
            IN_MOVED_TO | IN_CREATE,
            functools.partial(contract.order, bundle, container_id, supervision.REOPEN),
            functools.partial(contract.listen, bundle, container_id),
        )


def leftovers(bundle: str, names: Sequence[str] = FILES) -> None:
    """Remove conmon's files of a container that was never completed."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            Path(bundle, name).unlink()
