"""Programs that are asked whether an image may be used, as containerd's ``bindir`` verifiers are.

https://github.com/containerd/containerd/blob/main/docs/image-verification.md

Unlike there, a directory without a program refuses every image, and no program is passed over.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from forgeone_shim.deadline import Deadline
from forgeone_shim.dropins.files import replaceable, untrusted
from forgeone_shim.errors import FailedPrecondition, UntrustedImage
from forgeone_shim.kernel import spawn
from forgeone_shim.registry.model import Credentials
from forgeone_shim.registry.reference import DEFAULT_REGISTRY, Reference

MAX_PROGRAMS: Final = 32
MEDIA_TYPE: Final = "application/vnd.oci.descriptor.v1+json"
AUTH_VARIABLE: Final = "REGISTRY_AUTH_FILE"
"""containers-auth.json(5): where a program finds the credentials of the pull, if there are any."""

_MAX_OUTPUT: Final = 16 * 1024
_MAX_REASON: Final = 500
# What is meant for this process, and not for its children.
_OWN: Final = ("FORGEONE_", "NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_")


class Target(msgspec.Struct, frozen=True, rename="camel"):
    """What a name stands for in its registry: an OCI descriptor."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Verifiers:
    """The programs of a directory, each with ``timeout`` seconds for an answer. They are found anew for each image."""

    directory: Path
    timeout: float

    def check(self, reference: Reference, target: Target, auth: bytes | None, deadline: Deadline) -> tuple[str, ...]:
        """Ask all of them; returns their names once all have agreed.

        :param auth: a containers-auth.json with what the registry may be told, if there is anything.
        :raises UntrustedImage: one does not agree, or none could be asked. DeadlineExceeded.
        """
        programs = self._programs(str(reference))
        with ThreadPoolExecutor(len(programs), thread_name_prefix="verifier") as pool:
            asked = [pool.submit(self._ask, program, reference, target, auth, deadline) for program in programs]
        for each in asked:
            each.result()
        return tuple(program.name for program in programs)

    def fault(self) -> str:
        """Why no image can be judged now; ``""``: nothing is in the way."""
        return self._look()[1]

    def _programs(self, name: str) -> list[Path]:
        found, fault = self._look()
        if fault:
            raise UntrustedImage(
                f"{name}: no verifier of {self.directory} can be asked: {fault}",
                fix="put programs there that only root can change, or leave signatures.verifiers_dir empty",
            )
        return found

    def _look(self) -> tuple[list[Path], str]:
        try:
            found = sorted(self.directory.iterdir())
            fault = f"it {why}" if (why := untrusted(self.directory.stat())) else replaceable(str(self.directory))
            fault = fault or next(filter(None, map(_fault, found)), "")
        except OSError as error:
            return [], f"{error.filename}: {error.strerror}"
        if not found:
            fault = fault or "it is empty"
        elif len(found) > MAX_PROGRAMS:
            fault = fault or f"it has {len(found)} entries, more than {MAX_PROGRAMS}"
        return found, fault

    def _ask(self, program: Path, reference: Reference, target: Target, auth: bytes | None, deadline: Deadline) -> None:
        argv = [
            str(program),
            "-name",
            str(reference),
            "-digest",
            target.digest,
            "-stdin-media-type",
            MEDIA_TYPE,
        ]
        try:
            code, said = _run(argv, msgspec.json.encode(target), auth, self.timeout, deadline)
        except OSError as error:
            code, said = -1, f"it cannot be started: {error.strerror}"
        deadline.check(f"while {program.name} was asked about {reference}")
        if code is None:
            said = f"it gave no answer within {self.timeout:g} s"
        if code != 0:
            raise UntrustedImage(
                f"{reference}@{target.digest} is refused by {program.name}: {said or f'exit code {code}'}"
            )
        structlog.get_logger("images").debug("verified", image=str(reference), by=program.name, reason=said)


def auth_document(registry: str, credentials: Credentials | None) -> bytes | None:
    """What a registry may be told to let us in, as containers-auth.json(5); ``None``: nothing.

    :raises InvalidInput: the credentials are malformed.
    """
    if not credentials:
        return None
    user, password = credentials.login()
    entry = {
        "auth": base64.b64encode(f"{user}:{password}".encode()).decode() if user else "",
        "identitytoken": credentials.identity_token,
        "registrytoken": credentials.registry_token,
    }
    # Docker's own tools know its registry by an older name.
    names = (registry, "https://index.docker.io/v1/") if registry == DEFAULT_REGISTRY else (registry,)
    return msgspec.json.encode({"auths": {name: {key: text for key, text in entry.items() if text} for name in names}})


def _fault(program: Path) -> str:
    status = program.stat()
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        return f"{program.name} is no program"
    if why := untrusted(status):
        return f"{program.name} {why}"
    return replaceable(str(program))


def _run(
    argv: list[str], stdin: bytes, auth: bytes | None, timeout: float, deadline: Deadline
) -> tuple[int | None, str]:
    """Exit code (``None``: it was killed for want of one) and what it says on its standard output."""
    with contextlib.ExitStack() as stack:
        # A file in memory: whatever becomes of the program, there is no pipe to be stuck in.
        given = stack.enter_context(_memory("descriptor", stdin))
        files, env = {0: given}, _environment()
        if auth is not None:
            files[3] = stack.enter_context(_memory("auth", auth))
            env[AUTH_VARIABLE] = "/proc/self/fd/3"
        ends = []
        for number in (1, 2):
            read, write = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, read)
            ends.append(read)
            files[number] = write
        try:
            # A session of its own, so that what it starts can be ended with it.
            child = stack.enter_context(spawn.spawn(argv[0], argv, files=files, env=env, new_session=True))
        finally:
            for number in (1, 2):
                os.close(files[number])
        try:
            output = spawn.collect(ends, until=child.pidfd, deadline=deadline, limit=_MAX_OUTPUT, at_most=timeout)
        finally:
            # Before it is reaped: until then its number is no other process's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        code = child.wait(0) if output.finished else None
        out, err = (output.data[end].decode("utf-8", "replace").strip() for end in ends)
        if err:
            structlog.get_logger("images").debug("a verifier says", program=argv[0], text=err[:_MAX_REASON])
        return code, "".join(c for c in out if c.isprintable())[:_MAX_REASON]


@contextlib.contextmanager
def _memory(name: str, data: bytes) -> Iterator[int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        if os.write(fd, data) != len(data):
            raise FailedPrecondition(f"{name} of {len(data)} bytes is too large")
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _environment() -> dict[str, str]:
    inherited: Mapping[str, str] = os.environ
    return {key: value for key, value in inherited.items() if not key.startswith(_OWN)}
