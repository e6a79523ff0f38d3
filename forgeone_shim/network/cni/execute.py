"""Plugins that are programs: found in the plugin folders, told what to do as the specification's section 2 says."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded
from forgeone_shim.kernel.inotify import IN_CLOSE_WRITE, DirectoryEvents
from forgeone_shim.kernel.procs import open_process
from forgeone_shim.kernel.spawn import Child, collect, spawn
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json

# Codes of the specification's section 4; those from 100 on are the runtime's own.
IO_FAILURE: Final = 5
INVALID_NETWORK_CONFIG: Final = 7
TRY_AGAIN_LATER: Final = 11
NO_SUCH_PLUGIN: Final = 100
BAD_ANSWER: Final = 101

_ANSWER_MAX: Final = 1 << 20
_COMPLAINT_MAX: Final = 2048
# A program that is just being installed cannot be executed; its writer is given this many times so long, in seconds.
_BUSY_TIMES, _BUSY_SECONDS = 5, 1.0
_CONTAINER_ID: Final = b"CNI_CONTAINERID="
# A process in the kernel's hands dies when these let it go.
_KILLED_SECONDS, _KILL_ROUNDS = 5.0, 4
# What is about forgeoned itself means something else to the programs it runs.
_PRIVATE: Final = ("FORGEONE_", "CNI_", "NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_")


def find_program(type_: str, path: Sequence[str]) -> str | None:
    """The first executable file of that name in the folders of ``path``; a name that leads out of them is none."""
    if not type_ or "/" in type_ or "\0" in type_ or type_ in {".", ".."}:
        return None
    for folder in path:
        program = Path(folder, type_)
        with contextlib.suppress(OSError):
            if stat.S_ISREG(program.stat().st_mode) and os.access(program, os.X_OK):
                return str(program)
    return None


def environment(invocation: Invocation, inherited: Mapping[str, str]) -> dict[str, str]:
    """What a plugin finds in its environment."""
    env = {name: value for name, value in inherited.items() if not name.startswith(_PRIVATE)}
    env["CNI_COMMAND"] = str(invocation.command)
    env["CNI_PATH"] = ":".join(invocation.path)
    if invocation.container_id:
        env["CNI_CONTAINERID"] = invocation.container_id
        env["CNI_IFNAME"] = invocation.ifname
        env["CNI_NETNS"] = invocation.netns
        env["CNI_ARGS"] = ";".join(f"{key}={value}" for key, value in invocation.args.items())
    return env


@dataclass(frozen=True, slots=True)
class Program:
    """A plugin of that type, looked for in the invocation's folders at each call."""

    type: str

    def __call__(self, invocation: Invocation, deadline: Deadline) -> Json:
        """Run it to its end. It and all that it started are killed when the deadline passes.

        :raises CniError: it is not there, failed, or answered what is no result.
        :raises DeadlineExceeded: the deadline passed first.
        """
        program = find_program(self.type, invocation.path)
        if program is None:
            raise CniError(NO_SUCH_PLUGIN, f"there is no executable {self.type!r} in {', '.join(invocation.path)}")
        config = msgspec.json.encode(invocation.config)
        code, answer, complaint = _run(program, environment(invocation, os.environ), config, deadline)
        if code != 0:
            raise _error(program, code, answer, complaint)
        if invocation.command is not Command.ADD:
            return {}
        return _decode(program, answer)


def versions(type_: str, path: Sequence[str], deadline: Deadline) -> tuple[str, ...]:
    """The versions of the specification that a program says it supports (``CNI_COMMAND=VERSION``).

    :raises CniError: it is not there, failed, or answered something else.
    :raises DeadlineExceeded: the deadline passed first.
    """
    program = find_program(type_, path)
    if program is None:
        raise CniError(NO_SUCH_PLUGIN, f"there is no executable {type_!r} in {', '.join(path)}")
    env = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    # Plugins older than the specification's 1.0 ask for all variables whatever the command.
    env |= {"CNI_COMMAND": "VERSION", "CNI_PATH": ":".join(path)}
    env |= {"CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_CONTAINERID": "dummy"}
    code, answer, complaint = _run(program, env, b'{"cniVersion":"1.1.0"}', deadline)
    if code != 0:
        raise _error(program, code, answer, complaint)
    said = _decode(program, answer).get("supportedVersions")
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        raise CniError(BAD_ANSWER, f"{program} names no supportedVersions")
    return tuple(said)


def end_orphans(container_ids: Collection[str]) -> None:
    """Kill the plugins that an earlier forgeoned was running for these pods when it died.

    They are found by their environment. Let be, one could finish its ADD after the DEL that is to undo it.
    """
    # Again, for what one of them has started meanwhile; not for ever, as the kernel may be holding one.
    for _ in range(_KILL_ROUNDS):
        with contextlib.ExitStack() as stack:
            found = [
                stack.enter_context(held)
                for pid in _processes()
                if _orphan(pid, container_ids) and (held := open_process(pid)) is not None
            ]
            if not found:
                return
            # Looked at again: by now the number is sure to be this process's.
            killed = [held for held in found if _orphan(held.pid, container_ids) and held.send(signal.SIGKILL)]
            # All of them together: this is before forgeoned serves.
            until = Deadline.after(_KILLED_SECONDS)
            for held in killed:
                held.wait(until.remaining())


def _processes() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def _orphan(pid: int, container_ids: Collection[str]) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    ids = [one[len(_CONTAINER_ID) :].decode(errors="replace") for one in environ if one.startswith(_CONTAINER_ID)]
    return bool(ids) and ids[0] in container_ids


def _run(program: str, env: Mapping[str, str], config: bytes, deadline: Deadline) -> tuple[int, bytes, str]:
    """Exit code, standard output, and what was said on standard error."""
    deadline.check(f"before {program} ran")
    with contextlib.ExitStack() as stack:
        # A file, not a pipe: the plugin reads when it likes, and nobody has to feed it meanwhile.
        stdin = os.memfd_create("cni-config", os.MFD_CLOEXEC)
        stack.callback(os.close, stdin)
        os.write(stdin, config)
        os.lseek(stdin, 0, os.SEEK_SET)
        out, out_end = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, out)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, err)
        try:
            child = _start(program, env, {0: stdin, 1: out_end, 2: err_end}, deadline)
        except OSError as error:
            raise CniError(IO_FAILURE, f"{program} cannot be executed: {error.strerror}") from error
        finally:
            os.close(out_end)
            os.close(err_end)
        stack.enter_context(child)
        # Before the child is reaped: its number, and so its process group's, is its own until then.
        with _killed_when_abandoned(child, deadline):
            output = collect([out, err], until=child.pidfd, deadline=deadline, limit=_ANSWER_MAX)
        if not output.finished or deadline.passed:
            _kill_group(child)
            raise DeadlineExceeded(f"deadline passed while {program} ran {env['CNI_COMMAND']}")
        code = child.wait()
        answer = output.data[out]
        if len(answer) >= _ANSWER_MAX:
            raise CniError(BAD_ANSWER, f"{program} answered more than {_ANSWER_MAX >> 20} MiB")
        return -1 if code is None else code, answer, _last(output.data[err])


@contextlib.contextmanager
def _killed_when_abandoned(child: Child, deadline: Deadline) -> Iterator[None]:
    def kill() -> None:
        # It may be reaped and let go of at this very moment.
        with contextlib.suppress(OSError):
            child.pidfd.send(signal.SIGKILL)

    deadline.listen(kill)
    try:
        yield
    finally:
        deadline.ignore(kill)


def _kill_group(child: Child) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _start(program: str, env: Mapping[str, str], files: Mapping[int, int], deadline: Deadline) -> Child:
    """Spawn it as the leader of a session of its own; one that is being written is waited for."""
    try:
        return spawn(program, [program], files=files, env=env, new_session=True)
    except OSError as error:
        if error.errno != errno.ETXTBSY:
            raise
    written = DirectoryEvents(Path(program).parent, IN_CLOSE_WRITE)
    try:
        for turn in range(_BUSY_TIMES + 1):
            try:
                return spawn(program, [program], files=files, env=env, new_session=True)
            except OSError as error:
                if error.errno != errno.ETXTBSY or turn == _BUSY_TIMES:
                    raise
            _wait(written.fileno(), deadline.remaining(_BUSY_SECONDS))
            written.read()
            deadline.check(f"while {program} was being written")
    finally:
        written.close()
    raise AssertionError("the last turn returns or raises")


def _wait(fd: int, seconds: float | None) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(None if seconds is None else int(seconds * 1000 + 0.999))


def _last(complaint: bytes) -> str:
    """The end of what was said, which has the reason, in printable characters."""
    text = complaint[-_COMPLAINT_MAX:].decode(errors="replace").strip()
    return "".join(character if character.isprintable() else " " for character in text)


def _decode(program: str, answer: bytes) -> Json:
    try:
        decoded = msgspec.json.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        said = _last(answer) or "nothing"
        raise CniError(BAD_ANSWER, f"{program} answered no JSON: {error}", f"it said {said[:200]!r}") from None
    if not isinstance(decoded, dict):
        raise CniError(BAD_ANSWER, f"{program} answered JSON that is no object")
    return decoded


def _error(program: str, code: int, answer: bytes, complaint: str) -> CniError:
    """From what a plugin that failed left on its standard output, or else on standard error."""
    name = Path(program).name
    try:
        said = _decode(program, answer)
    except CniError:
        reason = complaint or _last(answer) or "no message"
        return CniError(BAD_ANSWER, f"{name}: exit code {code}: {reason}")
    number, message, details = said.get("code"), said.get("msg"), said.get("details")
    return CniError(
        number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else BAD_ANSWER,
        f"{name}: {message if isinstance(message, str) and message else f'exit code {code}'}",
        "; ".join(part for part in (details, complaint) if isinstance(part, str) and part),
    )
