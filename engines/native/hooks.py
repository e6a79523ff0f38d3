"""Hooks of a container: those that crun runs while it creates it, and those that are run here, as crun is not there.

A container is started and forgotten without crun, so ``poststart`` and ``poststop`` hooks are kept in a file of the
container's bundle, where they are found after any restart.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from engines.base import Hook, HookStage
from engines.native import spec
from forgeone_shim.deadline import Deadline
from forgeone_shim.dropins.files import replaceable, untrusted
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, ForgeError, InternalError, syscall_error
from forgeone_shim.kernel.spawn import collect, spawn

NOTE = "hooks.json"
PATIENCE = 60
"""Seconds that a hook without a timeout of its own may take."""

_OUTPUT_MAX = 4096
_CREATING = (HookStage.PRESTART, HookStage.CREATE_RUNTIME, HookStage.CREATE_CONTAINER)
_OURS = frozenset({HookStage.POSTSTART, HookStage.POSTSTOP})


def check(hooks: Sequence[Hook]) -> None:
    """Refuse programs that are not there, or that others than root can change: they are run as root.

    A ``startContainer`` hook is a program of the container's own.
    """
    for path in dict.fromkeys(hook.path for hook in hooks if hook.stage is not HookStage.START_CONTAINER):
        try:
            status, fault = Path(path).stat(), replaceable(path)
        except OSError as error:
            raise FailedPrecondition(f"hook {path}: {error.strerror}") from error
        if not (stat.S_ISREG(status.st_mode) and status.st_mode & 0o111):
            raise FailedPrecondition(f"hook {path}: is not an executable file")
        if fault := untrusted(status) or fault:
            raise FailedPrecondition(f"hook {path}: {fault}", fix="it must be root's alone to change")


def of_crun(hooks: Sequence[Hook], deadline: Deadline) -> dict[str, list[dict[str, Any]]]:
    """OCI ``hooks`` for crun. None of those that run while the container is created may outlast the ``deadline``."""
    left = deadline.remaining()
    found: dict[str, list[dict[str, Any]]] = {}
    for hook in hooks:
        if hook.stage in _OURS:
            continue
        timeout = hook.timeout or PATIENCE
        if left is not None and hook.stage in _CREATING:
            # Whole seconds, and one is the least that crun knows.
            timeout = max(1, min(timeout, int(left)))
        entry: dict[str, Any] = {"path": hook.path, "args": list(hook.args), "timeout": timeout}
        if hook.env:
            entry["env"] = list(hook.env)
        found.setdefault(hook.stage, []).append(entry)
    return found


class _Note(msgspec.Struct, forbid_unknown_fields=True):
    """What is kept for the time when the container runs, and when it is gone."""

    hooks: list[Hook]
    annotations: dict[str, str]


def keep(bundle: str, hooks: Sequence[Hook], annotations: Mapping[str, str]) -> None:
    """Note those hooks that are run here; nothing where there are none."""
    ours = [hook for hook in hooks if hook.stage in _OURS]
    if ours:
        try:
            Path(bundle, NOTE).write_bytes(msgspec.json.encode(_Note(ours, dict(annotations))))
        except OSError as error:
            raise syscall_error("write", f"{bundle}/{NOTE}", error) from error


def kept(bundle: str) -> bool:
    """Whether there are any."""
    return os.path.exists(f"{bundle}/{NOTE}")  # noqa: PTH110


def poststart(bundle: str, container_id: str, pid: int, env: Mapping[str, str], deadline: Deadline) -> None:
    """Run them in their order, each with the container's state on its standard input.

    :raises ForgeError: the first that fails; the others are not run.
    """
    note = _read(bundle)
    state = _state(note, bundle, container_id, "running", pid)
    for hook in note.hooks:
        if hook.stage is HookStage.POSTSTART:
            _run(hook, bundle, state, env, deadline)


def poststop(bundle: str, container_id: str, env: Mapping[str, str]) -> None:
    """Run them all, whatever becomes of each, and forget them. After a crash between the two they run once more."""
    try:
        note = _read(bundle)
    except ForgeError as error:
        structlog.get_logger("native").warning("hooks lost", container=container_id, error=str(error))
        note = _Note([], {})
    state = _state(note, bundle, container_id, "stopped", 0)
    for hook in note.hooks:
        if hook.stage is HookStage.POSTSTOP:
            try:
                _run(hook, bundle, state, env, Deadline())
            except ForgeError as error:
                structlog.get_logger("native").warning("hook failed", container=container_id, error=str(error))
    Path(bundle, NOTE).unlink(missing_ok=True)


def _read(bundle: str) -> _Note:
    try:
        return msgspec.json.decode(Path(bundle, NOTE).read_bytes(), type=_Note)
    except OSError as error:
        raise syscall_error("read", f"{bundle}/{NOTE}", error) from error
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InternalError(f"{bundle}/{NOTE} is not as it was written: {error}") from error


def _state(note: _Note, bundle: str, container_id: str, status: str, pid: int) -> bytes:
    """OCI runtime spec, "State"."""
    whole: dict[str, Any] = {"ociVersion": spec.OCI_VERSION, "id": container_id, "status": status, "pid": pid}
    return msgspec.json.encode({**whole, "bundle": bundle, "annotations": note.annotations})


def _run(hook: Hook, bundle: str, state: bytes, env: Mapping[str, str], deadline: Deadline) -> None:
    # Long after the container was created.
    check([hook])
    seconds = hook.timeout or PATIENCE
    own = dict(variable.split("=", 1) for variable in hook.env) if hook.env else env
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(_input(state))
        read, write = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, read)
        try:
            # A session of its own, so that what it starts can be ended with it.
            files = {0: given, 1: write, 2: write}
            child = stack.enter_context(spawn(hook.path, hook.args, files=files, env=own, cwd=bundle, new_session=True))
        except OSError as error:
            raise InternalError(f"{hook.stage} hook {hook.path} cannot be started: {error.strerror}") from error
        finally:
            os.close(write)
        output = collect([read], until=child.pidfd, deadline=deadline, limit=_OUTPUT_MAX, at_most=seconds)
        if not output.finished:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            if deadline.passed:
                raise DeadlineExceeded(f"deadline passed while {hook.stage} hook {hook.path} ran")
            raise InternalError(f"{hook.stage} hook {hook.path} was killed after {seconds} s")
        code = child.wait()
        if code != 0:
            said = " ".join(output.data[read].decode(errors="replace").split())
            raise InternalError(
                f"{hook.stage} hook {hook.path} failed with exit code {code}: {said or 'it said nothing'}"
            )


@contextlib.contextmanager
def _input(content: bytes) -> Iterator[int]:
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
