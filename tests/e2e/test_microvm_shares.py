"""Volumes over FUSE do what a local file system does, show what the host changes, and lead nowhere else."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from engines import base
from engines.microvm import volumes
from engines.microvm.shares import calls, client, fuse, launch, server
from engines.microvm.shares.launch import READY_TICKET
from engines.microvm.shares.orders import Broken, Done, Failed, Volume
from engines.microvm.wire.messages import Mount
from engines.microvm.wire.protocol import MountKind
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel.capabilities import from_mask
from forgeone_shim.kernel.mounts import clone, mount_tmpfs, set_apart, unmount
from forgeone_shim.shim import wire
from tests.e2e.share_lab import UID, Share, being, compiled, dead_file_system, mounted

pytestmark = pytest.mark.root

# When a guest asks again, and a little more.
_STALE: Final = fuse.VALID_NS / 1e9 + 0.3
_USER, _GROUP = 31337, 31338
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_IN_CREATE: Final = 0x100
_libc: Final = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("share"))


@pytest.fixture(scope="module")
def share(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Share]:
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as stack:
        patched.setattr(server, "_IDLE_SECONDS", 0.3)
        running = stack.enter_context(mounted(program, tmp_path_factory.mktemp("share")))
        assert running.answer(READY_TICKET) == []
        yield running


class Numbers:
    """Of volumes, none given twice."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        return self.last


@pytest.fixture(scope="module")
def numbers() -> Numbers:
    return Numbers()


Place = tuple[Path, Path]


@pytest.fixture
def place(share: Share, numbers: Numbers, tmp_path: Path) -> Iterator[Place]:
    """A volume: as the guest has it, and as the host has it."""
    number = numbers.next()
    host = tmp_path / "volume"
    host.mkdir()
    yield share.add(number, host), host
    share.remove(number)


def _fails(code: int, function: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        function()
    assert caught.value.errno == code, caught.value


def _wait(condition: Callable[[], bool], seconds: float = _STALE) -> None:
    """What becomes true once the guest asks again."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not seen in time"
        time.sleep(0.02)


# -- what is in files


def test_what_is_written_is_there_on_both_sides(place: Place) -> None:
    guest, host = place
    data = os.urandom(3 << 20)
    (guest / "file").write_bytes(data)
    assert (host / "file").read_bytes() == data
    assert (guest / "file").read_bytes() == data
    with (guest / "file").open("r+b") as file:
        file.seek(5)
        file.write(b"middle")
        file.truncate(11)
    assert (host / "file").read_bytes() == data[:5] + b"middle"
    with (guest / "file").open("ab") as file, (host / "file").open("ab") as other:
        for _ in range(3):
            file.write(b"g")
            file.flush()
            other.write(b"h")
            other.flush()
    assert (host / "file").read_bytes()[11:] == b"ghghgh"
    (guest / "file").open("w").close()
    assert (host / "file").stat().st_size == 0
    _fails(errno.EEXIST, lambda: (guest / "file").open("x"))


def test_holes_are_kept_and_made(place: Place) -> None:
    guest, host = place
    fd = os.open(guest / "sparse", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, 1 << 34)
        os.pwrite(fd, b"x" * 65536, 1 << 33)
        assert (host / "sparse").stat().st_blocks * 512 < 1 << 20
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 33
        assert os.lseek(fd, 1 << 33, os.SEEK_HOLE) == (1 << 33) + 65536
        # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        calls.fallocate(fd, 3, 1 << 33, 65536)
        assert os.pread(fd, 10, 1 << 33) == bytes(10)
        os.posix_fallocate(fd, 0, 4096)
        os.fsync(fd)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    assert (host / "sparse").stat().st_size == 1 << 34


def test_files_are_copied_by_the_host(place: Place) -> None:
    guest, host = place
    data = os.urandom(200_000)
    (guest / "from").write_bytes(data)
    with (guest / "from").open("rb") as source, (guest / "to").open("wb") as target:
        copied = 0
        while part := os.copy_file_range(source.fileno(), target.fileno(), len(data) - copied):
            copied += part
    assert (host / "to").read_bytes() == data


def test_mapped_files_are_files(place: Place) -> None:
    guest, host = place
    (guest / "mapped").write_bytes(bytes(8192))
    with (guest / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 8192) as area:
        area[4096:4101] = b"hello"
        area.flush()
        assert (host / "mapped").read_bytes()[4096:4101] == b"hello"
        area[0:3] = b"bye"
    assert (host / "mapped").read_bytes()[:3] in (b"bye", bytes(3))
    os.sync()
    assert (host / "mapped").read_bytes()[:3] == b"bye"


def test_a_file_without_a_name_lives_while_it_is_open(place: Place) -> None:
    guest, host = place
    with (guest / "gone").open("w+b") as file:
        file.write(b"before")
        file.flush()
        (guest / "gone").unlink()
        file.write(b" after")
        file.seek(0)
        assert file.read() == b"before after"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert not list(host.iterdir())


def test_locks_hold_between_processes(place: Place) -> None:
    guest, _ = place
    with (guest / "lock").open("w") as file, (guest / "lock").open("w") as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        _fails(errno.EAGAIN, lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
        fcntl.lockf(file, fcntl.LOCK_EX)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                with (guest / "lock").open("w") as mine:
                    fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- names


def test_renaming_replaces_exchanges_or_refuses(place: Place) -> None:
    guest, host = place
    (guest / "a").write_text("a")
    (guest / "b").write_text("b")
    (guest / "a").rename(guest / "b")
    assert (host / "b").read_text() == "a"
    assert not (host / "a").exists()
    (guest / "c").write_text("c")
    fd = os.open(guest, os.O_RDONLY)
    try:
        _fails(errno.EEXIST, lambda: calls.rename(fd, b"b", fd, b"c", _RENAME_NOREPLACE))
        calls.rename(fd, b"b", fd, b"c", _RENAME_EXCHANGE)
    finally:
        os.close(fd)
    assert ((host / "b").read_text(), (host / "c").read_text()) == ("c", "a")
    (guest / "d/e").mkdir(parents=True)
    (guest / "d").rename(guest / "f")
    assert (host / "f/e").is_dir()
    _fails(errno.EINVAL, lambda: (guest / "f").rename(guest / "f/e/f"))
    _fails(errno.ENOTEMPTY, (guest / "f").rmdir)
    _fails(errno.EISDIR, (guest / "f").unlink)
    _fails(errno.ENOTDIR, (guest / "b").rmdir)
    _fails(errno.ENOENT, (guest / "none").unlink)
    _fails(errno.EEXIST, (guest / "f").mkdir)
    _fails(errno.ENAMETOOLONG, (guest / ("n" * 256)).touch)
    (guest / ("n" * 255)).touch()
    (guest / "n\udcff\n").touch()
    assert (host / "n\udcff\n").exists()


def test_hard_links_are_one_file(place: Place) -> None:
    guest, host = place
    (guest / "one").write_text("1")
    (guest / "two").hardlink_to(guest / "one")
    assert (guest / "one").stat().st_ino == (guest / "two").stat().st_ino
    assert (guest / "one").stat().st_nlink == 2
    (guest / "two").write_text("2")
    assert (guest / "one").read_text() == "2"
    (guest / "one").unlink()
    assert (host / "two").stat().st_nlink == 1
    (guest / "link").symlink_to("two")
    os.link(guest / "link", guest / "same", follow_symlinks=False)
    assert (host / "same").readlink() == Path("two")


def test_symlinks_are_the_guests_to_follow(place: Place) -> None:
    guest, host = place
    (guest / "outside").symlink_to("/etc/hostname")
    (guest / "dangling").symlink_to("nothing/there")
    (guest / "loop").symlink_to("loop")
    assert (host / "outside").readlink() == Path("/etc/hostname")
    assert (guest / "dangling").readlink() == Path("nothing/there")
    _fails(errno.ENOENT, (guest / "dangling").read_text)
    _fails(errno.ELOOP, (guest / "loop").read_text)
    _fails(errno.ENAMETOOLONG, lambda: (guest / "long").symlink_to("x" * 4097))
    os.chown(guest / "dangling", _USER, _GROUP, follow_symlinks=False)
    os.utime(guest / "dangling", ns=(5, 7), follow_symlinks=False)
    found = (host / "dangling").lstat()
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (_USER, _GROUP, 7)


def test_large_directories_are_read_whole(place: Place) -> None:
    guest, host = place
    names = {f"file-{number:05}" for number in range(3000)}
    for name in names:
        (host / name).touch()
    fd = os.open(guest, os.O_RDONLY)
    try:
        assert set(os.listdir(fd)) == names
        assert set(os.listdir(fd)) == names
    finally:
        os.close(fd)
    with os.scandir(guest) as found:
        for entry in found:
            assert entry.is_file(follow_symlinks=False)
            assert entry.inode() == entry.stat(follow_symlinks=False).st_ino
            Path(entry.path).unlink()
    assert not list(host.iterdir())


# -- what files say of themselves, and whose they are


def test_modes_times_and_owners_are_kept(place: Place) -> None:
    guest, host = place
    file = guest / "file"
    file.touch(mode=0o640)
    file.chmod(0o4751)
    assert stat.S_IMODE((host / "file").stat().st_mode) == 0o4751
    os.chown(file, _USER, _GROUP)
    found = (host / "file").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (_USER, _GROUP, 0o751)
    os.utime(file, ns=(1_000_000_001, 2_000_000_002))
    calls.set_times(str(file), None, (-5, 3), (False, False))
    found, seen = (host / "file").stat(), file.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, -5 * 10**9 + 3)
    assert (seen.st_atime_ns, seen.st_mtime_ns, seen.st_ctime_ns) == (
        found.st_atime_ns,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
    os.utime(file)
    assert abs(file.stat().st_mtime - time.time()) < 5
    space, real = os.statvfs(guest), os.statvfs(host)
    assert (space.f_blocks, space.f_frsize, space.f_files) == (real.f_blocks, real.f_frsize, real.f_files)


def test_what_a_user_makes_is_the_users(place: Place) -> None:
    guest, host = place
    guest.chmod(0o777)
    (guest / "set-group").mkdir()
    os.chown(guest / "set-group", 0, 4242)
    (guest / "set-group").chmod(0o2777)
    (guest / "secret").write_text("x")
    (guest / "secret").chmod(0o600)
    (guest / "closed").mkdir(mode=0o700)
    umask = os.umask(0o027)
    try:
        with being(_USER, _GROUP, guest):
            Path("file").write_text("mine")
            Path("directory").mkdir()
            Path("link").symlink_to("file")
            os.mkfifo("fifo")
            Path("set-group/file").touch()
            Path("set-group/directory").mkdir()
            Path("script").write_text("x")
            Path("script").chmod(0o6755)
            _fails(errno.EACCES, Path("secret").read_text)
            _fails(errno.EACCES, lambda: Path("closed/file").touch())
            _fails(errno.EPERM, lambda: Path("secret").chmod(0o666))
            _fails(errno.EPERM, lambda: os.chown("file", 0, 0))
    finally:
        os.umask(umask)
    for name in ("file", "directory", "link", "fifo"):
        found = (host / name).lstat()
        assert (found.st_uid, found.st_gid) == (_USER, _GROUP), name
    assert stat.S_IMODE((host / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((host / "directory").stat().st_mode) == 0o750
    for name in ("file", "directory"):
        assert (host / "set-group" / name).stat().st_gid == 4242
    assert (host / "set-group/directory").stat().st_mode & stat.S_ISGID
    # Who writes and is not privileged takes the bits away, and nobody else.
    (host / "script").chmod(0o6777)
    (guest / "script").write_text("root")
    assert stat.S_IMODE((host / "script").stat().st_mode) == 0o6777
    time.sleep(_STALE)
    with being(4711, 4711, guest), Path("script").open("r+") as file:
        file.write("other")
    assert stat.S_IMODE((host / "script").stat().st_mode) == 0o777


def test_extended_attributes_are_a_users_alone(place: Place) -> None:
    guest, host = place
    (guest / "file").touch()
    os.setxattr(guest / "file", "user.one", b"1" * 1000)
    os.setxattr(guest / "file", "user.two", b"", os.XATTR_CREATE)
    assert os.getxattr(host / "file", "user.one") == b"1" * 1000
    assert set(os.listxattr(guest / "file")) == {"user.one", "user.two"}
    _fails(errno.EEXIST, lambda: os.setxattr(guest / "file", "user.two", b"2", os.XATTR_CREATE))
    os.removexattr(guest / "file", "user.two")
    _fails(errno.ENODATA, lambda: os.getxattr(guest / "file", "user.two"))
    os.setxattr(host / "file", "trusted.host", b"secret")
    _fails(errno.EOPNOTSUPP, lambda: os.getxattr(guest / "file", "trusted.host"))
    _fails(errno.EOPNOTSUPP, lambda: os.setxattr(guest / "file", "trusted.guest", b""))
    assert set(os.listxattr(guest / "file")) == {"user.one"}


def test_fifos_and_sockets_are_the_guests_own_and_devices_nobodys(place: Place) -> None:
    guest, host = place
    os.mkfifo(host / "fifo")
    reader = os.open(guest / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(guest / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"through")
    assert os.read(reader, 10) == b"through"
    os.close(reader)
    os.close(writer)
    with socket.socket(socket.AF_UNIX) as listener:
        fd = os.open(guest, os.O_PATH)
        listener.bind(f"/proc/self/fd/{fd}/socket")
        os.close(fd)
    assert stat.S_ISSOCK((host / "socket").stat().st_mode)
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        _fails(errno.EPERM, lambda kind=kind: os.mknod(guest / "device", kind | 0o666, os.makedev(1, 3)))  # type: ignore[misc]
    assert not (host / "device").exists()


# -- what the host does


def test_what_the_host_changes_is_seen(place: Place) -> None:
    guest, host = place
    assert not (guest / "new").exists()
    (host / "new").write_text("1")
    _wait((guest / "new").exists)
    assert (guest / "new").read_text() == "1"
    (host / "new").write_text("22")
    _wait(lambda: (guest / "new").read_text() == "22")
    # As long as before, in a reader that has it open.
    with (guest / "new").open() as file:
        assert file.read() == "22"
        (host / "new").write_text("33")
        time.sleep(_STALE)
        file.seek(0)
        assert file.read() == "33"
        with (host / "new").open("a") as more:
            more.write("44")
        _wait(lambda: file.read() == "44")
    (host / "other").write_text("replaced")
    (host / "other").rename(host / "new")
    _wait(lambda: (guest / "new").read_text() == "replaced")
    (host / "new").unlink()
    _wait(lambda: not (guest / "new").exists())


def test_an_update_of_a_projected_volume_is_seen_whole(place: Place) -> None:
    """As a kubelet's AtomicWriter does it."""
    guest, host = place
    (host / "..v1").mkdir()
    (host / "..v1/key").write_text("old")
    (host / "..data").symlink_to("..v1")
    (host / "key").symlink_to("..data/key")
    (host / "more").symlink_to("..data/more")
    assert (guest / "key").read_text() == "old"
    (host / "..v2").mkdir()
    (host / "..v2/key").write_text("new")
    (host / "..v2/more").write_text("more")
    (host / "..tmp").symlink_to("..v2")
    (host / "..tmp").rename(host / "..data")
    (host / "..v1/key").unlink()
    (host / "..v1").rmdir()
    # By way of a directory that is gone, as far as the guest knew.
    assert (guest / "more").read_text() == "more"
    began = time.monotonic()
    seen = set()
    while time.monotonic() - began < _STALE and "new" not in seen:
        # At no time is it not there.
        seen.add((guest / "key").read_text())
    assert "new" in seen
    assert seen <= {"old", "new"}
    assert time.monotonic() - began < 1


def test_directories_that_move_on_the_host_are_followed_nowhere_else(place: Place, tmp_path: Path) -> None:
    guest, host = place
    (host / "inner").mkdir()
    (tmp_path / "elsewhere").mkdir()
    fd = os.open(guest / "inner", os.O_PATH)
    try:
        (host / "inner").rename(tmp_path / "elsewhere/inner")
        (tmp_path / "elsewhere/secret").touch()
        time.sleep(_STALE)
        _fails(errno.ENOENT, lambda: os.stat("secret", dir_fd=fd))
        assert not (guest / "inner").exists()
    finally:
        os.close(fd)


# -- volumes


def test_a_volume_that_is_read_only_is_so_on_the_host(share: Share, numbers: Numbers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("as it was")
    (tmp_path / "directory").mkdir()
    (tmp_path / "other").mkdir()
    guest = share.add(numbers.next(), tmp_path, readonly=True)
    writable = share.add(numbers.next(), tmp_path / "other")
    file = guest / "file"
    for change in (
        lambda: file.write_text("changed"),
        lambda: file.open("r+"),
        lambda: os.truncate(file, 0),
        (guest / "new").touch,
        (guest / "new").mkdir,
        lambda: (guest / "new").symlink_to("x"),
        lambda: os.mkfifo(guest / "new"),
        lambda: (guest / "new").hardlink_to(file),
        file.unlink,
        (guest / "directory").rmdir,
        lambda: file.rename(guest / "new"),
        lambda: file.chmod(0o777),
        lambda: os.chown(file, 1, 1),
        lambda: os.utime(file),
        lambda: os.setxattr(file, "user.x", b""),
        # From there into what may be written to.
        lambda: (writable / "new").hardlink_to(file),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno in (errno.EROFS, errno.EXDEV), change
    assert file.read_text() == "as it was"
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "directory", "other"}
    assert not list((tmp_path / "other").iterdir())


def test_what_one_container_changes_the_other_sees_at_once(share: Share, numbers: Numbers, tmp_path: Path) -> None:
    """As where one writes a configuration and tells the other to read it, each with a mount of its own."""
    numbers_of = numbers.next(), numbers.next()
    (tmp_path / "sub").mkdir()
    one, other = (share.add(number, tmp_path) for number in numbers_of)
    for writer, reader in ((one, other), (one / "sub", other / "sub")):
        (writer / "file").write_text("old")
        assert (reader / "file").read_text() == "old"
        (writer / "new").write_text("new")
        (writer / "new").rename(writer / "file")
        assert (reader / "file").read_text() == "new"
        with (
            (writer / "file").open("r+b") as file,
            (reader / "file").open("rb") as same,
            mmap.mmap(file.fileno(), 3) as here,
            mmap.mmap(same.fileno(), 3, prot=mmap.PROT_READ) as there,
        ):
            here[:] = b"two"
            assert there[:] == b"two"
        (writer / "file").unlink()
        assert not (reader / "file").exists()
    share.remove(*numbers_of)


def test_a_directory_that_containers_have_in_common_is_one(share: Share, numbers: Numbers, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    first, second = numbers.next(), numbers.next()
    for number in (first, second):
        fd = os.open(tmp_path, os.O_PATH)
        share.server.add([Volume(number, readonly=number == first, common=True)], [fd])
        os.close(fd)
        # The first is in use by then, as a container's mount is.
        with contextlib.suppress(OSError):
            (share.root / str(number) / "sub/made").mkdir()
        if number == first:
            held = os.open(share.root / str(number) / "sub", os.O_RDONLY)
            assert not os.listdir(held)
    assert os.listdir(held) == ["made"]
    other = share.root / str(second)
    (other / "sub/made").rmdir()
    notifier = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert _libc.inotify_add_watch(notifier, b"/proc/self/fd/%d" % held, _IN_CREATE) > 0
        (other / "sub/file").write_text("x")
        assert b"file\0" in os.read(notifier, 4096)
        assert os.listdir(held) == ["file"]
        # It is there until the last of its numbers is not, and may be written to by that one alone.
        share.remove(second)
        assert os.stat("file", dir_fd=held).st_size == 1
        _fails(errno.EROFS, lambda: os.unlink("file", dir_fd=held))
    finally:
        os.close(notifier)
        os.close(held)
    time.sleep(_STALE)
    assert not other.exists()
    assert (share.root / str(first) / "sub/file").exists()
    share.remove(first)


def test_what_the_host_mounts_later_is_seen_where_it_is_asked_for(
    share: Share, numbers: Numbers, tmp_path: Path
) -> None:
    """With ``HostToContainer``, and not otherwise; each volume is opened as for a container."""
    (tmp_path / "later").mkdir()
    asked = (volumes.Shared(str(tmp_path), readonly=False, live=True), volumes.Shared(str(tmp_path), readonly=False))
    live, private = numbers.next(), numbers.next()
    with contextlib.ExitStack() as held:
        places = [volumes.Place(Mount(kind=MountKind.SHARE, destination="/d"), one) for one in asked]
        opened = volumes.opened(places, held)
        share.server.add([Volume(live, live=True), Volume(private)], [opened[one] for one in asked])
    seen, unseen = (share.root / str(number) / "later" for number in (live, private))
    assert not list(seen.iterdir())

    def nested(path: Path) -> bool:
        return volumes.look([base.Mount("/d", str(path), readonly=True)])[str(path)].nested

    assert not nested(tmp_path)
    mount_tmpfs(tmp_path / "later", 1 << 20)
    try:
        assert nested(tmp_path)
        assert not nested(tmp_path / "later")
        (tmp_path / "later/file").write_text("x")
        _wait((seen / "file").exists)
        assert not (unseen / "file").exists()
        (seen / "file").write_text("y")
        assert (tmp_path / "later/file").read_text() == "y"
        # What the guest merely remembers of it is not to keep the host from unmounting it.
        before, end = share.asked.stat().st_size, time.monotonic() + 10
        while share.asked.stat().st_size == before:
            assert time.monotonic() < end
            time.sleep(0.02)

        def gone() -> bool:
            # The server hears of it a moment after the kernel has let go.
            Path("/proc/sys/vm/drop_caches").write_text("2")
            try:
                unmount(tmp_path / "later", detach=False)
            except InternalError:
                return False
            return True

        _wait(gone, 10)
    finally:
        unmount(tmp_path / "later")
    _wait(lambda: not (seen / "file").exists())
    share.remove(live, private)


def test_a_read_only_mount_of_the_host_keeps_nobody_else_from_writing(
    share: Share, numbers: Numbers, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("old")
    number, other = numbers.next(), numbers.next()
    mount = clone(tmp_path)
    try:
        set_apart(mount, readonly=True)
        share.server.add([Volume(number)], [mount])
    finally:
        os.close(mount)
    readonly, writable = share.root / str(number) / "file", share.add(other, tmp_path) / "file"
    assert readonly.read_text() == "old"
    _fails(errno.EROFS, lambda: readonly.write_text("x"))
    writable.write_text("new")
    _wait(lambda: readonly.read_text() == "new")
    share.remove(other)
    _fails(errno.EROFS, lambda: readonly.write_text("x"))
    share.remove(number)


def test_a_file_is_a_volume_too_and_volumes_come_and_go(share: Share, numbers: Numbers, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1")
    (tmp_path / "directory").mkdir()
    first, second = numbers.next(), numbers.next()
    file = share.add(first, tmp_path / "hosts")
    directory = share.add(second, tmp_path / "directory")
    assert file.read_text() == "127.0.0.1"
    assert not list(share.root.iterdir())
    held = f"/proc/{share.server.pid}/fd"
    opened = os.open(directory / "file", os.O_WRONLY | os.O_CREAT)
    os.write(opened, b"x")
    share.remove(second, 4711)
    with pytest.raises(OSError) as caught:
        os.pwrite(opened, b"more", 0)
    assert caught.value.errno in (errno.EBADF, errno.ESTALE)
    with contextlib.suppress(OSError):
        os.close(opened)
    left = [os.readlink(f"{held}/{fd}") for fd in os.listdir(held)]
    assert not [path for path in left if path.startswith(str(tmp_path / "directory"))]
    time.sleep(_STALE)
    _fails(errno.ENOENT, directory.stat)
    assert (tmp_path / "directory/file").read_text() == "x"
    share.remove(first)


def test_volumes_that_cannot_be_are_refused_all_together(share: Share, numbers: Numbers, tmp_path: Path) -> None:
    number = numbers.next()
    (tmp_path / "link").symlink_to(tmp_path)
    good = os.open(tmp_path, os.O_PATH)
    link = os.open(tmp_path / "link", os.O_PATH | os.O_NOFOLLOW)
    try:
        (ticket,) = share.server.add([Volume(number), Volume(numbers.next())], [good, link])
    finally:
        os.close(good)
        os.close(link)
    (refused,) = share.answer(ticket)
    assert isinstance(refused, Failed)
    assert "symlink" in refused.message
    assert not (share.root / str(number)).exists()


# -- the process


def test_the_server_can_do_little_else(share: Share) -> None:
    proc = Path(f"/proc/{share.server.pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    assert status["Uid"].split()[0] == status["Gid"].split()[0] == str(UID)
    assert status["Groups"].strip() == ""
    kept = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "SETFCAP"}
    assert from_mask(int(status["CapEff"], 16)) == from_mask(int(status["CapPrm"], 16)) == {f"CAP_{n}" for n in kept}
    assert int(status["CapBnd"], 16) == int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    assert (proc / "ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    assert os.listdir(f"{proc}/root") == []
    assert len((proc / "mountinfo").read_text().splitlines()) == 1
    _fails(errno.EROFS, lambda: Path(f"{proc}/root/x").touch())
    # Where its descriptors have names nobody else's have, nor has the kernel.
    above = {entry for entry in os.listdir(f"{proc}/cwd/../..") if not entry.isdigit()}
    assert above <= {"self", "thread-self"}


def test_a_server_that_is_killed_leaves_errors_and_no_process(program: Path, tmp_path: Path) -> None:
    with mounted(program, tmp_path) as share:
        (tmp_path / "volume").mkdir()
        guest = share.add(1, tmp_path / "volume")
        (guest / "file").touch()
        os.kill(share.server.pid, signal.SIGKILL)
        with pytest.raises(OSError) as caught:
            while True:
                (guest / "other").touch()
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def test_a_server_ends_with_its_keeper(program: Path, tmp_path: Path) -> None:
    with mounted(program, tmp_path) as share:
        pidfd = os.pidfd_open(share.server.pid)
        share.server._connection.close()
        assert select.select([pidfd], [], [], 10)[0]
        os.close(pidfd)


def test_nobody_waits_for_a_server_that_waits_for_a_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_END_SECONDS", 0.2)
    host, guest = socket.socketpair()
    with host, guest, dead_file_system(tmp_path) as asked:
        server = launch.start(host, "lab", uid=UID, gid=UID)
        fd = os.open(tmp_path, os.O_PATH)
        server.add([Volume(1)], [fd])
        os.close(fd)
        assert select.select([asked], [], [], 10)[0]
        os.read(asked, 1 << 16)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 2
        assert os.waitpid(server.pid, os.WNOHANG) == (0, 0)
    os.waitpid(server.pid, 0)


def test_a_guest_that_speaks_no_fuse_is_served_no_more(tmp_path: Path) -> None:
    host, guest = socket.socketpair()
    server = launch.start(host, "lab", uid=UID, gid=UID)
    host.close()
    with guest, contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        guest.send(b"\xff" * 100)
        said = []
        with contextlib.suppress(wire.Ended):
            while select.select([server], [], [], 10)[0]:
                said += server.answers()
        assert said[0] == Done(0)
        assert isinstance(said[1], Broken)
        assert guest.recv(1) == b""


def test_a_guest_that_knows_too_much_is_asked_to_forget(share: Share, place: Place) -> None:
    guest, host = place
    before = share.asked.stat().st_size
    for number in range(9000):
        os.close(os.open(host / str(number), os.O_CREAT | os.O_WRONLY))
    end = time.monotonic() + 10
    with os.scandir(guest) as found:
        assert sum(1 for entry in found if entry.stat()) == 9000
    while share.asked.stat().st_size == before:
        assert time.monotonic() < end
        time.sleep(0.02)
