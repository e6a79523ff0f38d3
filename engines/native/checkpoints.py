"""Checkpoint and restore of a container's processes, which crun does with CRIU where it was built with it."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from engines.native import execute
from engines.native.conmon import Programs
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InternalError, syscall_error
from forgeone_shim.kernel.procs import open_process
from forgeone_shim.kernel.spawn import find_program, run

_VERSION_SECONDS = 5.0
_END_SECONDS = 60.0
_MARK = "checkpointed"
_DUMP_LOG, _RESTORE_LOG = "dump.log", "restore.log"
_ERROR = re.compile(r"Error \([^)]*\): (.*)")
_CRIU = "+CRIU"


def missing(crun: str) -> str:
    """What this host lacks for checkpoints; empty when it can make them. ``crun`` is a program's name or path."""
    path = find_program(crun)
    if not path or _CRIU not in run(path, ["crun", "--version"], Deadline.after(_VERSION_SECONDS)).text.split():
        return f"{crun} was built without CRIU"
    return "" if find_program("criu") else "criu is not installed"


def need(crun: str) -> None:
    """:raises FailedPrecondition: this host cannot make or restore checkpoints."""
    lacks = missing(crun)
    if lacks:
        fix = "install criu, and a crun whose `crun --version` says +CRIU (1.23 or newer)"
        raise FailedPrecondition(f"this host cannot checkpoint: {lacks}", fix=fix)


def dump(programs: Programs, name: str, images: str, deadline: Deadline) -> None:
    """Write the processes of a container into the directory ``images``, and leave them as they are.

    Open TCP connections and file locks are in it. A container that is frozen stays frozen.

    :raises FailedPrecondition: CRIU cannot dump these processes; the reason is CRIU's first error.
    """
    words = ["checkpoint", f"--image-path={images}", f"--work-path={images}", "--leave-running"]
    words += ["--tcp-established", "--file-locks", name]
    # CRIU outlives crun. It has the processes stopped and its own code in them, and before it ends it freezes what was
    # frozen when it began: a container that was let go before that would stand still for good.
    wrong = execute.command(programs, words, deadline, patience=_END_SECONDS)
    if wrong:
        raise FailedPrecondition(f"checkpoint of container {name}: {_first_error(images, _DUMP_LOG) or wrong}")


def mark(bundle: str) -> None:
    """Note that CRIU is at work on the container, until :func:`unmark`."""
    try:
        Path(bundle, _MARK).touch()
    except OSError as error:
        raise syscall_error("write", f"{bundle}/{_MARK}", error) from error


def is_marked(bundle: str) -> bool:
    """Whether CRIU was at work on the container, and nobody has made sure since that it is not any more."""
    return os.path.exists(f"{bundle}/{_MARK}")  # noqa: PTH110


def unmark(bundle: str) -> None:
    """Undo :func:`mark`; nothing to undo is no error."""
    Path(bundle, _MARK).unlink(missing_ok=True)


def await_end(name: str, deadline: Deadline) -> None:
    """Wait for a checkpoint of a container that nobody has waited for.

    :raises InternalError: it is still under way when the deadline passes.
    """
    for pid in (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0] != b"crun" or b"checkpoint" not in words or name.encode() not in words:
                continue
            held = open_process(pid)
            if held is not None:
                with held:
                    if not held.wait(deadline.remaining()):
                        raise InternalError(f"a checkpoint of container {name} is still under way (pid {pid})")


def restore_options(images: str, work: str) -> list[str]:
    """What conmon is told to restore a container instead of creating it.

    Connections that were open are closed: the pod has another address, and the peer has gone on.
    """
    options = ["--restore", images]
    for word in (f"--image-path={images}", f"--work-path={work}", "--tcp-close", "--file-locks"):
        options += ["--runtime-opt", word]
    return options


def restore_error(name: str, work: str, message: str) -> InternalError:
    """Why a restore failed, in CRIU's words where it left some."""
    return InternalError(f"restore container {name}: {_first_error(work, _RESTORE_LOG) or message}")


def _first_error(directory: str, name: str) -> str:
    """Of all errors in a log of CRIU's the first is the cause, but for a limit of its own that it can do without."""
    with contextlib.suppress(OSError):
        for found in _ERROR.finditer(Path(directory, name).read_text(errors="replace")):
            if not found[1].startswith("rlimit:"):
                return found[1].strip()
    return ""
