"""Volumes as a guest has them, without a machine: its own code carries FUSE messages between /dev/fuse and a server."""

from __future__ import annotations

import gc
import os
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final

import pytest

from engines.microvm.boot.agent import SOURCES
from engines.microvm.shares import fuse, launch
from engines.microvm.shares.client import FileServer
from engines.microvm.shares.orders import Answer, Done, Failed, Volume
from forgeone_shim.kernel.mounts import unmount
from forgeone_shim.kernel.syscalls import number, syscall

UID: Final = 1_900_000_778
_PATIENCE: Final = 20.0
# struct fuse_init_out
_INIT_OUT: Final = Struct("<IIIIHHII36x")
_FLAGS: Final = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror")


def compiled(directory: Path) -> Path:
    """The program that mounts a share on this host."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc for the guest's agent")
    if not Path("/dev/fuse").exists():
        pytest.skip("this host has no FUSE")
    target = directory / "carry"
    sources = [str(SOURCES / "share.c"), str(Path(__file__).parent / "share" / "carry.c")]
    done = subprocess.run(
        [compiler, *_FLAGS, f"-I{SOURCES}", "-o", str(target), *sources], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


@dataclass(frozen=True, slots=True)
class Share:
    """A mount that nobody else sees. ``root`` leads to it; ``asked`` grows by a byte when nodes are to be forgotten."""

    root: Path
    carrier: int
    server: FileServer
    asked: Path

    def add(self, number: int, path: Path, *, readonly: bool = False) -> Path:
        """Serve a volume; where it is. Nobody waits for an answer."""
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            self.server.add([Volume(number, readonly)], [fd])
        finally:
            os.close(fd)
        return self.root / str(number)

    def remove(self, *numbers: int) -> None:
        """Let go of volumes; when this returns it has."""
        assert self.answer(self.server.remove(numbers)) == []

    def answer(self, ticket: int) -> list[Answer]:
        """All that the server says up to the answer that bears the ticket, but that something was done."""
        said: list[Answer] = []
        while Done(ticket) not in said and not any(isinstance(one, Failed) and one.ticket == ticket for one in said):
            found, _, _ = select.select([self.server], [], [], _PATIENCE)
            assert found, "the file server says nothing"
            said += self.server.answers()
        return [one for one in said if not isinstance(one, Done)]


@contextmanager
def mounted(program: Path, directory: Path) -> Iterator[Share]:
    """A share without volumes, mounted for ``program`` alone."""
    point, asked = directory / "point", directory / "asked"
    point.mkdir()
    asked.touch()
    with ExitStack() as stack:
        host, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.callback(host.close)
        argv = ["unshare", "--mount", "--propagation", "private", str(program), str(guest.fileno()), str(point)]
        with guest:
            carrier = subprocess.Popen(
                [*argv, str(asked)], pass_fds=[guest.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert carrier.stdin is not None
        assert carrier.stdout is not None
        stack.callback(carrier.stdout.close)
        stack.callback(carrier.wait, _PATIENCE)
        stack.callback(carrier.stdin.close)
        assert carrier.stdout.readline() == b"mounted\n"
        # What earlier tests have left for the collector, as channels of gRPC's, is not the child's to end.
        gc.collect()
        gc.freeze()
        try:
            server = launch.start(host, "lab", uid=UID, gid=UID)
        finally:
            gc.unfreeze()
        host.close()
        stack.callback(server.stop)
        yield Share(Path(f"/proc/{carrier.pid}/root{point}"), carrier.pid, server, asked)


@contextmanager
def dead_file_system(point: Path) -> Iterator[int]:
    """What is mounted there answers nobody; yields a descriptor that its requests can be read from.

    Who waits for it waits until the end of this, even if killed, once the request has been read.
    """
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = b"fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other" % fd
        syscall(number("mount"), b"dead", os.fsencode(point), b"fuse", 0, options)
        try:
            _, _, unique, *_ = fuse.IN_HEADER.unpack_from(os.read(fd, 1 << 16))
            os.write(fd, fuse.answer(unique, _INIT_OUT.pack(7, 31, 0, 0, 0, 0, 4096, 1)))
            yield fd
        finally:
            unmount(point)
    finally:
        os.close(fd)


@contextmanager
def being(uid: int, gid: int, directory: Path) -> Iterator[None]:
    """This process is another user, in a directory that it would not have come to."""
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    groups = os.getgroups()
    os.chdir(directory)
    try:
        os.setgroups([])
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        os.fchdir(before)
        os.close(before)
