"""The file server against guests that do not play by the rules, without a mount."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.microvm.boot.agent import SOURCES
from engines.microvm.shares import dispatch, files, fuse, orders, server, state
from engines.microvm.shares.confinement import profile
from engines.microvm.shares.fuse import ROOT_ID, Opcode
from engines.microvm.shares.nodes import Nodes
from engines.microvm.shares.orders import Add, Done, Failed, Remove, Volume
from engines.microvm.shares.state import Handles, Share
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.shim import wire
from forgeone_shim.shim.wire import ProtocolError

_PATHS: Final = "/proc/self/fd/"
_NOBODY: Final = -1


class Guest:
    """Asks, as whoever runs the tests, and reads what is answered."""

    def __init__(self, directory: Path, *, nodes: int = 64, handles: int = 16) -> None:
        empty = directory / "empty"
        empty.mkdir()
        self.volume = directory / "volume"
        self.volume.mkdir()
        self.nodes = Nodes(os.open(empty, os.O_PATH), nodes)
        self.share = Share(self.nodes, Handles(self.nodes, handles), paths=_PATHS, news=lambda: None)
        self.nodes.add_volume(1, os.open(self.volume, os.O_PATH), readonly=False)
        self.root = self.look(ROOT_ID, b"1")

    def ask(self, opcode: int, nodeid: int, body: bytes = b"") -> tuple[int, bytes]:
        size = fuse.IN_HEADER.size + len(body)
        header = fuse.IN_HEADER.pack(size, opcode, 7, nodeid, os.geteuid(), os.getegid(), 0, 0, 0)
        answer = dispatch.handle(self.share, memoryview(header + body))
        if answer is None:
            return _NOBODY, b""
        size, error, unique = fuse.OUT_HEADER.unpack_from(answer)
        assert size == len(answer)
        assert unique == 7
        assert not error or size == fuse.OUT_HEADER.size
        return -error, bytes(answer[fuse.OUT_HEADER.size :])

    def look(self, nodeid: int, name: bytes) -> int:
        error, body = self.ask(Opcode.LOOKUP, nodeid, name + b"\0")
        assert not error, os.strerror(error)
        return int.from_bytes(body[:8], "little")

    def open(self, nodeid: int, flags: int = os.O_RDONLY) -> int:
        error, body = self.ask(Opcode.OPEN, nodeid, fuse.OPEN.pack(flags, 0))
        assert not error, os.strerror(error)
        return int.from_bytes(body[:8], "little")

    def close(self) -> None:
        self.share.remove_volume(1)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    one = Guest(tmp_path)
    yield one
    one.close()
    shutil.rmtree(tmp_path)


_NAMES: Final = (b"..", b".", b"", b"a/b", b"../x", b"/etc", b"1/..")


@pytest.mark.parametrize("name", _NAMES)
def test_a_name_that_leads_elsewhere_is_none(guest: Guest, name: bytes) -> None:
    two = name + b"\0ok\0"
    for nodeid in (ROOT_ID, guest.root):
        assert guest.ask(Opcode.LOOKUP, nodeid, name + b"\0")[0] in (errno.EINVAL, errno.ENOENT)
    for opcode, before in (
        (Opcode.UNLINK, b""),
        (Opcode.RMDIR, b""),
        (Opcode.MKDIR, fuse.MKDIR.pack(0o755, 0)),
        (Opcode.MKNOD, fuse.MKNOD.pack(0o100644, 0, 0, 0)),
        (Opcode.CREATE, fuse.CREATE.pack(os.O_RDWR, 0o644, 0, 0)),
        (Opcode.LINK, fuse.LINK.pack(guest.root)),
    ):
        assert guest.ask(opcode, guest.root, before + name + b"\0")[0] == errno.EINVAL, opcode
    assert guest.ask(Opcode.SYMLINK, guest.root, two)[0] == errno.EINVAL
    assert guest.ask(Opcode.RENAME, guest.root, fuse.RENAME.pack(guest.root) + two)[0] == errno.EINVAL
    assert guest.ask(Opcode.RENAME2, guest.root, fuse.RENAME2.pack(guest.root, 0, 0) + two)[0] == errno.EINVAL
    assert {entry.name for entry in guest.volume.parent.iterdir()} == {"empty", "volume"}
    assert not list(guest.volume.iterdir())


def test_the_way_up_is_never_told(guest: Guest) -> None:
    (guest.volume / "sub").mkdir()
    sub = guest.look(guest.root, b"sub")
    _, body = guest.ask(Opcode.OPENDIR, sub, fuse.OPEN.pack(0, 0))
    fh = int.from_bytes(body[:8], "little")
    error, body = guest.ask(Opcode.READDIRPLUS, sub, fuse.READ.pack(fh, 0, 4096, 0, 0, 0, 0))
    assert not error
    # Both "." and ".." are there, and neither says what they are.
    assert int.from_bytes(body[:8], "little") == 0
    assert len(guest.nodes) == 3


def test_a_symlink_is_not_followed_on_the_host(guest: Guest) -> None:
    (guest.volume / "link").symlink_to("/etc/passwd")
    (guest.volume / "up").symlink_to("..")
    link, up = guest.look(guest.root, b"link"), guest.look(guest.root, b"up")
    assert guest.ask(Opcode.OPEN, link, fuse.OPEN.pack(0, 0))[0] == errno.ENXIO
    assert guest.ask(Opcode.OPENDIR, up, fuse.OPEN.pack(0, 0))[0] == errno.ENOTDIR
    assert guest.ask(Opcode.LOOKUP, up, b"volume\0")[0] == errno.ENOTDIR
    assert guest.ask(Opcode.READLINK, link) == (0, b"/etc/passwd")
    created = fuse.CREATE.pack(os.O_WRONLY, 0o644, 0, 0) + b"link\0"
    assert guest.ask(Opcode.CREATE, guest.root, created)[0] == errno.ESTALE


def test_a_fifo_of_the_hosts_is_never_opened(guest: Guest) -> None:
    os.mkfifo(guest.volume / "fifo")
    fifo = guest.look(guest.root, b"fifo")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        assert guest.ask(Opcode.OPEN, fifo, fuse.OPEN.pack(flags, 0))[0] == errno.ENXIO
    created = fuse.CREATE.pack(os.O_WRONLY, 0o644, 0, 0) + b"fifo\0"
    assert guest.ask(Opcode.CREATE, guest.root, created)[0] == errno.ESTALE
    size = struct.pack("<IIQQ64x", fuse.Set.SIZE, 0, 0, 0)
    assert guest.ask(Opcode.SETATTR, fifo, size)[0] == errno.EINVAL


def test_a_volume_begins_where_it_is_said_to(guest: Guest) -> None:
    for name in (b"2", b"01", b"+1", b" 1", b"1\xb2", b"99999999999", b"-1", "\u0661".encode()):
        assert guest.ask(Opcode.LOOKUP, ROOT_ID, name + b"\0")[0] == errno.ENOENT, name
    assert guest.ask(Opcode.MKDIR, ROOT_ID, fuse.MKDIR.pack(0o755, 0) + b"new\0")[0] == errno.EROFS
    assert guest.ask(Opcode.UNLINK, ROOT_ID, b"1\0")[0] == errno.EROFS


def test_open_files_are_of_their_nodes_alone(guest: Guest) -> None:
    (guest.volume / "one").write_text("1")
    (guest.volume / "two").write_text("2")
    one, two = guest.look(guest.root, b"one"), guest.look(guest.root, b"two")
    fh = guest.open(one)
    read = fuse.READ.pack(fh, 0, 10, 0, 0, 0, 0)
    assert guest.ask(Opcode.READ, one, read) == (0, b"1")
    assert guest.ask(Opcode.READ, two, read)[0] == errno.EBADF
    assert guest.ask(Opcode.READDIR, one, read)[0] == errno.ENOTDIR
    assert guest.ask(Opcode.RELEASE, two, fuse.HANDLE.pack(fh) + bytes(16))[0] == errno.EBADF
    write = fuse.WRITE.pack(fh, 0, 5, 0, 0, 0, 0)
    assert guest.ask(Opcode.WRITE, one, write + b"hello")[0] == errno.EBADF
    assert guest.ask(Opcode.WRITE, one, write + b"hell")[0] == errno.EINVAL
    # Numbers that no file has room for.
    beyond = fuse.READ.pack(fh, (1 << 64) - 1, 10, 0, 0, 0, 0)
    assert guest.ask(Opcode.READ, one, beyond)[0] == errno.EINVAL


def test_what_is_not_there_is_said_not_to_be(guest: Guest) -> None:
    assert guest.ask(Opcode.IOCTL, guest.root, bytes(32))[0] == errno.ENOTTY
    for opcode in (0, 34, 40, 50, 4096, 0xFFFFFFFF):
        assert guest.ask(opcode, guest.root, bytes(32))[0] == errno.ENOSYS
    for opcode in fuse.SILENT:
        assert guest.ask(opcode, guest.root)[0] == _NOBODY


def test_what_a_guest_can_hold_is_bounded(guest: Guest) -> None:
    for number in range(100):
        (guest.volume / str(number)).touch()
    known = [guest.ask(Opcode.LOOKUP, guest.root, b"%d\0" % number) for number in range(100)]
    assert [error for error, _ in known].count(errno.ENFILE) == 100 - (64 - 2)
    assert guest.ask(Opcode.MKDIR, guest.root, fuse.MKDIR.pack(0o755, 0) + b"new\0")[0] == errno.ENFILE
    assert not (guest.volume / "new").exists()
    first = int.from_bytes(known[0][1][:8], "little")
    opened = [guest.ask(Opcode.OPEN, first, fuse.OPEN.pack(0, 0))[0] for _ in range(20)]
    assert opened == [0] * 16 + [errno.ENFILE] * 4
    # As often as it likes, or more often than it was told.
    guest.ask(Opcode.FORGET, first, fuse.FORGET.pack(1 << 63))
    assert guest.ask(Opcode.GETATTR, first, fuse.GETATTR.pack(0, 0, 0))[0] == 0
    second = int.from_bytes(known[1][1][:8], "little")
    batch = fuse.COUNT.pack(0xFFFFFFFF, 0) + fuse.FORGET_ONE.pack(second, 1) + fuse.FORGET_ONE.pack(ROOT_ID, 1)
    assert guest.ask(Opcode.BATCH_FORGET, 0, batch) == (_NOBODY, b"")
    assert guest.ask(Opcode.GETATTR, second, fuse.GETATTR.pack(0, 0, 0))[0] == errno.ESTALE
    assert guest.ask(Opcode.GETATTR, ROOT_ID, fuse.GETATTR.pack(0, 0, 0))[0] == 0
    assert guest.ask(Opcode.LOOKUP, guest.root, b"99\0")[0] == 0


def test_a_node_of_a_volume_that_is_gone_is_stale(guest: Guest) -> None:
    (guest.volume / "file").write_text("x")
    file = guest.look(guest.root, b"file")
    fh = guest.open(file)
    guest.share.remove_volume(1)
    assert guest.ask(Opcode.READ, file, fuse.READ.pack(fh, 0, 10, 0, 0, 0, 0))[0] == errno.EBADF
    for nodeid in (file, guest.root):
        assert guest.ask(Opcode.GETATTR, nodeid, fuse.GETATTR.pack(0, 0, 0))[0] == errno.ESTALE
    # The same directory again is another volume, with other nodes.
    guest.nodes.add_volume(2, os.open(guest.volume, os.O_PATH), readonly=True)
    again = guest.look(guest.look(ROOT_ID, b"2"), b"file")
    assert again != file
    assert guest.ask(Opcode.OPEN, again, fuse.OPEN.pack(os.O_WRONLY, 0))[0] == errno.EROFS
    assert guest.ask(Opcode.OPEN, file, fuse.OPEN.pack(os.O_RDONLY, 0))[0] == errno.ESTALE
    guest.share.remove_volume(2)


def test_a_file_of_two_volumes_is_one_and_a_directory_is_not(guest: Guest) -> None:
    (guest.volume / "sub").mkdir()
    (guest.volume / "sub/file").touch()
    guest.nodes.add_volume(2, os.open(guest.volume / "sub", os.O_PATH), readonly=True)
    there, here = guest.look(guest.root, b"sub"), guest.look(ROOT_ID, b"2")
    assert there != here
    assert guest.look(there, b"file") == guest.look(here, b"file")
    # What can be written to by way of one volume can be by that way alone.
    assert guest.ask(Opcode.MKDIR, here, fuse.MKDIR.pack(0o755, 0) + b"new\0")[0] == errno.EROFS
    move = fuse.RENAME.pack(here) + b"sub\0new\0"
    assert guest.ask(Opcode.RENAME, guest.root, move)[0] == errno.EROFS
    guest.share.remove_volume(2)
    assert guest.ask(Opcode.GETATTR, guest.look(there, b"file"), fuse.GETATTR.pack(0, 0, 0))[0] == 0


def test_no_flag_of_a_request_changes_what_is_read_only(guest: Guest, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("x")
    (other / "file").chmod(0o4755)
    os.utime(other / "file", ns=(0, 0))
    guest.nodes.add_volume(2, os.open(other, os.O_PATH), readonly=True)
    file = guest.look(guest.look(ROOT_ID, b"2"), b"file")
    fh = guest.open(file)
    killing = fuse.WRITE.pack(fh, 0, 1, fuse.WRITE_KILL_SUIDGID, 0, 0, 0)
    assert guest.ask(Opcode.WRITE, file, killing + b"y")[0] == errno.EROFS
    killing = fuse.OPEN.pack(os.O_RDONLY | os.O_TRUNC, fuse.OPEN_KILL_SUIDGID)
    assert guest.ask(Opcode.OPEN, file, killing)[0] == errno.EROFS
    assert guest.ask(Opcode.READ, file, fuse.READ.pack(fh, 0, 10, 0, 0, 0, 0)) == (0, b"x")
    for opcode, body in (
        (Opcode.FALLOCATE, fuse.FALLOCATE.pack(fh, 0, 4096, 0, 0)),
        (Opcode.COPY_FILE_RANGE, fuse.COPY.pack(fh, 0, file, fh, 0, 1, 0)),
    ):
        assert guest.ask(opcode, file, body)[0]
    found = (other / "file").stat()
    assert (found.st_mode & 0o7777, found.st_size, found.st_atime_ns) == (0o4755, 1, 0)
    guest.share.remove_volume(2)


def test_what_is_open_is_not_written_to_without_the_volume_that_let_it(guest: Guest) -> None:
    (guest.volume / "file").write_text("x" * 100)
    guest.nodes.add_volume(2, os.open(guest.volume, os.O_PATH), readonly=True)
    file = guest.look(guest.look(ROOT_ID, b"2"), b"file")
    assert guest.look(guest.root, b"file") == file
    fh = guest.open(file, os.O_RDWR)
    guest.share.remove_volume(1)
    for opcode, body in (
        (Opcode.WRITE, fuse.WRITE.pack(fh, 0, 1, 0, 0, 0, 0) + b"y"),
        (Opcode.FALLOCATE, fuse.FALLOCATE.pack(fh, 0, 4096, 0, 0)),
        (Opcode.COPY_FILE_RANGE, fuse.COPY.pack(fh, 0, file, fh, 50, 1, 0)),
        (Opcode.SETATTR, struct.pack("<IIQQ64x", fuse.Set.SIZE | fuse.Set.FH, 0, fh, 0)),
    ):
        assert guest.ask(opcode, file, body)[0] == errno.EROFS, opcode
    assert (guest.volume / "file").read_text() == "x" * 100
    guest.share.remove_volume(2)


def test_a_file_gets_no_name_in_another_volume(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (guest.volume / "file").touch()
    guest.nodes.add_volume(2, os.open(tmp_path / "other", os.O_PATH), readonly=False)
    file, other = guest.look(guest.root, b"file"), guest.look(ROOT_ID, b"2")
    assert guest.ask(Opcode.LINK, other, fuse.LINK.pack(file) + b"new\0")[0] == errno.EXDEV
    move = fuse.RENAME.pack(other) + b"file\0new\0"
    assert guest.ask(Opcode.RENAME, guest.root, move)[0] == errno.EXDEV
    assert not list((tmp_path / "other").iterdir())
    guest.share.remove_volume(2)


def test_the_kernels_own_files_are_not_written_to(guest: Guest) -> None:
    guest.nodes.add_volume(2, os.open("/proc/self", os.O_PATH), readonly=False)
    comm = guest.look(guest.look(ROOT_ID, b"2"), b"comm")
    assert guest.ask(Opcode.OPEN, comm, fuse.OPEN.pack(os.O_WRONLY, 0))[0] == errno.EROFS
    error, body = guest.ask(Opcode.OPEN, comm, fuse.OPEN.pack(os.O_RDONLY, 0))
    fh, told, _ = fuse.OPEN_OUT.unpack(body)
    assert (error, told) == (0, fuse.DIRECT_IO)
    # One that waits for news (trace_pipe) would keep all others waiting.
    assert not os.get_blocking(guest.share.handles.get(fh, comm).fd)
    guest.share.remove_volume(2)


def test_a_number_that_a_server_of_files_uses_again_is_another_file(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (guest.volume / "file").touch()
    (guest.volume / "sub").mkdir()
    file, sub = guest.look(guest.root, b"file"), guest.look(guest.root, b"sub")

    def stale(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ESTALE, "as NFS says")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", stale)
        assert guest.ask(Opcode.OPEN, file, fuse.OPEN.pack(0, 0))[0] == errno.ESTALE
        patched.setattr(os, "fstat", stale)
        assert guest.ask(Opcode.GETATTR, sub, fuse.GETATTR.pack(0, 0, 0))[0] == errno.ESTALE
    for node, name in ((file, b"file"), (sub, b"sub")):
        assert guest.look(guest.root, name) != node
        guest.ask(Opcode.FORGET, node, fuse.FORGET.pack(1))
    guest.open(guest.look(guest.root, b"file"))


def test_an_open_that_fails_leaves_nothing(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    (guest.volume / "file").touch()

    def broken(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "a broken disk")

    file, known, held = guest.look(guest.root, b"file"), len(guest.nodes), len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(files, "_told", broken)
    assert guest.ask(Opcode.OPEN, file, fuse.OPEN.pack(0, 0))[0] == errno.EIO
    guest.ask(Opcode.FORGET, file, fuse.FORGET.pack(1))
    for name in (b"file\0", b"new\0"):
        assert guest.ask(Opcode.CREATE, guest.root, fuse.CREATE.pack(os.O_RDWR, 0o644, 0, 0) + name)[0] == errno.EIO
    assert (len(guest.nodes), len(os.listdir("/proc/self/fd"))) == (known - 1, held - 1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 55),
            st.sampled_from((0, 1, 2, 3, 4, 5, 6, 2**64 - 1)),
            st.one_of(
                st.binary(max_size=120),
                st.builds(
                    lambda numbers, rest: struct.pack(f"<{len(numbers)}Q", *numbers) + rest,
                    st.lists(st.sampled_from((0, 1, 2, 3, 2**31, 2**32 - 1, 2**63, 2**64 - 1)), max_size=11),
                    st.sampled_from((b"", b"a\0", b"sub\0", b"a\0b\0", b"user.x\0v", b"..\0", b"file\0")),
                ),
            ),
        ),
        max_size=12,
    )
)
def test_nothing_that_a_guest_asks_is_more_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int, bytes]]
) -> None:
    directory = tmp_path_factory.mktemp("hostile")
    before = len(os.listdir("/proc/self/fd"))
    guest = Guest(directory)
    (guest.volume / "sub").mkdir()
    (guest.volume / "file").write_text("x" * 100)
    guest.look(guest.root, b"sub")
    guest.look(guest.root, b"file")
    for opcode, nodeid, body in asked:
        # Which may fill the disk, as it should.
        if opcode != Opcode.FALLOCATE:
            guest.ask(opcode, nodeid, body)
    assert {entry.name for entry in directory.iterdir()} == {"empty", "volume"}
    guest.close()
    # Those of the root itself.
    for number in range(len(asked) + 1):
        guest.share.handles.close(number)
    os.close(guest.nodes.get(ROOT_ID).fd)
    assert len(os.listdir("/proc/self/fd")) == before
    guest.volume.chmod(0o700)
    for inside, names, _ in os.walk(guest.volume):
        for name in names:
            Path(inside, name).chmod(0o700)
    shutil.rmtree(directory)


# -- framing and orders


@pytest.mark.parametrize("length", [0, 15, fuse.IN_HEADER.size - 1, fuse.REQUEST_MAX + 1, 0xFFFFFFFF])
def test_a_length_that_cannot_be_ends_the_connection(length: int) -> None:
    with pytest.raises(ValueError, match="FUSE message"):
        fuse.message_length(memoryview(length.to_bytes(4, "little") + bytes(100)))


def test_messages_may_come_in_any_pieces(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    port, peer = socket.socketpair()
    control, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (tmp_path / "empty").mkdir()
    root = os.open(tmp_path / "empty", os.O_PATH)
    with port, peer, control, keeper:
        serving = server.Server(port, control, root, server.limits(1024), paths=_PATHS)
        body = b"4711\0"
        header = fuse.IN_HEADER.pack(fuse.IN_HEADER.size + len(body), Opcode.LOOKUP, 9, ROOT_ID, 0, 0, 0, 0, 0)
        message = header + body
        for piece in (message[:3], message[3:41], message[41:] + message[:10], message[10:]):
            peer.send(piece)
            serving.turn()
        assert peer.recv(100) == fuse.refusal(9, errno.ENOENT) * 2
    os.close(root)


def test_a_guest_that_does_not_forget_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    port, peer = socket.socketpair()
    control, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for name in ("empty", "volume"):
        (tmp_path / name).mkdir()
    for number in range(20):
        (tmp_path / "volume" / str(number)).touch()
    root, volume = (os.open(tmp_path / name, os.O_PATH) for name in ("empty", "volume"))
    with port, peer, control, keeper:
        serving = server.Server(port, control, root, server.Limits(nodes=8, handles=8, many=4), paths=_PATHS)
        wire.send(keeper, orders.encode(Add(1, (Volume(1),))), [volume])
        os.close(volume)
        asked = 0
        for nodeid, text in [(ROOT_ID, "1"), *((2, str(number)) for number in range(20))]:
            body = text.encode() + b"\0"
            size = fuse.IN_HEADER.size + len(body)
            peer.send(fuse.IN_HEADER.pack(size, Opcode.LOOKUP, 9, nodeid, os.geteuid(), os.getegid(), 0, 0, 0) + body)
            serving.turn()
            asked += peer.recv(1000).count(fuse.please_forget())
            now += 0.1
        # Once it knows of four, and each second while it cannot know of more.
        assert asked == 2
        wire.send(keeper, orders.encode(Remove(2, (1,))))
        serving.turn()
    os.close(root)


def test_memory_that_nothing_is_in_is_given_back() -> None:
    memory = state.room(1 << 20)
    memory[5:10] = b"hello"
    state.give_back(memory)
    assert bytes(memory[5:10]) == bytes(5)


def test_the_parameters_of_both_sides_are_the_same() -> None:
    source = (SOURCES / "share.c").read_text()
    assert f"#define MAX_WRITE (1u << {fuse.MAX_WRITE.bit_length() - 1})" in source


def test_orders_and_answers_are_read_back() -> None:
    for order in (Add(1, (Volume(7, True), Volume(8))), Remove(2, (7, 8))):
        assert orders.decode_order(orders.encode(order)) == order
    for answer in (Done(1), Failed(2, "why")):
        assert orders.decode_answer(orders.encode(answer)) == answer
    for data in (b"{}", b"\xff", b'{"kind":"add","ticket":1,"volumes":[[0]]}', orders.encode(Done(1))):
        with pytest.raises(ProtocolError):
            orders.decode_order(data)


def test_the_filter_lets_nothing_out_of_the_process() -> None:
    rules = profile("x86_64")["syscalls"]
    assert isinstance(rules, list)
    allowed = {name for rule in rules for name in rule["names"]}
    for name in ("socket", "connect", "clone", "fork", "execve", "ptrace", "mount", "setns", "unshare", "kill", "bpf"):
        assert name not in allowed
    (mapped,) = (rule for rule in rules if "mmap" in rule["names"])
    assert mapped["args"][0]["value"] == 4
    assert mapped["args"][0]["valueTwo"] == 0


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_can_be_compiled(machine: str) -> None:
    compiler = Compiler()
    if not compiler.usable:
        pytest.skip("this host has no libseccomp")
    assert compiler.compile(profile(machine))
