"""Writing a layer's entries below one directory, exactly and nowhere else.

Every path is walked component by component from the root's descriptor with ``O_NOFOLLOW``, so there is no symlink,
``..`` or absolute name that could lead out. Files are always made anew (``O_EXCL``): what an earlier entry left under
the name is moved aside first, never written through.

Where an earlier entry made a parent a symlink (``bin -> usr/bin``, then ``bin/sh``), the target is read and its
components take the symlink's place in the walk, by the rules of ``RESOLVE_BENEATH`` in ``openat2(2)``: a target that is
absolute, or climbs above the root even for a moment, is refused. All that is remembered of a path is remembered under
the one that no symlink is part of.

Whiteouts become what overlayfs reads: a character device 0/0, or ``trusted.overlay.opaque`` on a directory (OCI image
spec, "Layer Filesystem Changeset"; kernel, Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from forgeone_shim.errors import ForgeError, InternalError, ResourceExhausted
from forgeone_shim.fs import tar
from forgeone_shim.fs.tar import Entry, bad, quoted
from forgeone_shim.fs.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from forgeone_shim.fs.stream import Archive

_WHITEOUT = b".wh."
_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_OPAQUE_XATTR = "trusted.overlay.opaque"
_OVERLAY_XATTRS = "trusted.overlay."

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT = b""
_MAX_OPEN_DIRECTORIES = 64
# What the kernel allows in one path (MAXSYMLINKS), and how deep a path that leads through a symlink may be.
_MAX_SYMLINKS, _MAX_DEPTH = 40, 128
_PAGE = 4096
# Their names are looked at whenever a container is made from the layer; the largest known images need a tenth of it.
_MAX_IMPLIED = 8 << 20
# Times that any file system of the last decades keeps: from 1901 to past 2400.
_EARLIEST, _LATEST = -(1 << 31) * 1_000_000_000, (1 << 34) * 1_000_000_000

_EXHAUSTED = frozenset((errno.ENOSPC, errno.EDQUOT))
# Failures that say something about this host and nothing about the layer.
_HOST = frozenset((errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EACCES, errno.ESTALE))


class _ThroughSymlink(Exception):
    """A component of the path is a symlink."""


class Extractor:
    """Extracts one layer into ``root_fd``, an empty directory; ``trash_fd`` is one beside it, for what is replaced.

    ``descriptors`` is where ``/proc/self/fd`` is: with a slash at its end, or empty for the working directory.
    """

    def __init__(self, root_fd: int, trash_fd: int, source: Archive, descriptors: bytes = b"/proc/self/fd/") -> None:
        self._root = root_fd
        self._trash = trash_fd
        self._source = source
        self._descriptors = descriptors
        self._open: dict[bytes, int] = {}
        self._last = (_ROOT, _ROOT, root_fd)
        self._times: dict[bytes, tuple[int, int, int]] = {}
        self._hidden: set[bytes] = set()
        self._implied: dict[bytes, None] = {}
        self._implied_length = 0
        self._discarded = 0
        self.opaque_root = False
        # What was made, without regard to what was replaced.
        self.size = _PAGE
        self.inodes = 1
        self.replaced = False

    @property
    def implied(self) -> list[bytes]:
        """Directories that the layer names only as parents: it says nothing of their owner, mode and times."""
        return list(self._implied)

    def run(self) -> None:
        """Extract everything. Raises ForgeError; what was made until then is the caller's to remove."""
        entry = None
        try:
            for entry in tar.entries(self._source):
                self._apply(entry)
                self._close_some()
            self._set_directory_times()
            self._empty_trash()
        except OSError as error:
            raise _translated(error, entry) from error
        except MemoryError as error:
            raise ResourceExhausted("the layer's headers need more memory than unpacking may take") from error
        finally:
            self._close_all()

    def _apply(self, entry: Entry) -> None:
        parts = _components(entry.name)
        if not parts:
            # The root's owner and mode are those of the container's own writable layer.
            if entry.type != tar.DIRECTORY:
                raise bad("the root is not a directory")
            return
        if _WHITEOUT in entry.name and self._is_whiteout(parts, entry):
            self._source.skip(entry.size)
            return
        base = parts.pop()
        parent_path, parent = self._directory(b"/".join(parts))
        path = parent_path + b"/" + base if parent_path else base
        if entry.type == tar.REGULAR:
            self._regular(parent, base, path, entry)
        elif entry.type == tar.DIRECTORY:
            self._explicit_directory(parent, base, path, entry)
        elif entry.type == tar.LINK:
            self._hard_link(parent, base, path, entry)
        else:
            self._special(parent, base, path, entry)

    # Entries

    def _regular(self, parent: int, base: bytes, path: bytes, entry: Entry) -> None:
        try:
            fd = os.open(base, _NEW_FILE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._make_way(parent, base, path)
            fd = os.open(base, _NEW_FILE, 0o600, dir_fd=parent)
        try:
            size = entry.size
            if entry.sparse is not None:
                for offset, length in entry.sparse:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._source.copy_to(fd, length)
                os.ftruncate(fd, entry.real_size)
            elif size:
                self._source.copy_to(fd, size)
            # Writing and chown(2) both clear set-id bits and file capabilities, so those come after.
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            if entry.xattrs:
                _set_xattrs(fd, entry)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)
        self.size += size + -size % _PAGE
        self.inodes += 1

    def _explicit_directory(self, parent: int, base: bytes, path: bytes, entry: Entry) -> None:
        fd = self._open.get(path)
        if fd is None:
            fd = self._open[path] = self._made_directory(parent, base, path)
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        if entry.xattrs:
            _set_xattrs(fd, entry)
        self._times[path] = (os.fstat(fd).st_ino, *_times(entry))
        self._implied.pop(path, None)

    def _hard_link(self, parent: int, base: bytes, path: bytes, entry: Entry) -> None:
        # Some builders write the target with the root's slash; it means the same file of this layer.
        parts = _components(entry.link.lstrip(b"/"), entry.name)
        if not parts:
            raise bad(f"{quoted(entry.name)}: a hard link to a directory")
        target = parts.pop()
        try:
            _, found = self._directory(b"/".join(parts), make=False)
            status = os.stat(target, dir_fd=found, follow_symlinks=False)
        except FileNotFoundError:
            raise bad(f"{quoted(entry.name)}: a hard link to {quoted(entry.link)}, not in this layer") from None
        if stat.S_ISDIR(status.st_mode):
            raise bad(f"{quoted(entry.name)}: a hard link to the directory {quoted(entry.link)}")
        if _is_whiteout_device(status):
            raise bad(f"{quoted(entry.name)}: a hard link to the deleted {quoted(entry.link)}")
        try:
            os.link(target, base, src_dir_fd=found, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            # Kept under a name of its own meanwhile: making way may take the target along, or be it.
            aside = b"link"
            os.link(target, aside, src_dir_fd=found, dst_dir_fd=self._trash, follow_symlinks=False)
            self._make_way(parent, base, path)
            os.rename(aside, base, src_dir_fd=self._trash, dst_dir_fd=parent)

    def _special(self, parent: int, base: bytes, path: bytes, entry: Entry) -> None:
        try:
            _make_special(parent, base, entry)
        except FileExistsError:
            self._make_way(parent, base, path)
            _make_special(parent, base, entry)
        os.chown(base, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.type != tar.SYMLINK:
            os.chmod(base, entry.mode, dir_fd=parent)
        if entry.xattrs:
            _set_xattrs(self._descriptors + b"%d/" % parent + base, entry)
        os.utime(base, ns=_times(entry), dir_fd=parent, follow_symlinks=False)
        self.inodes += 1

    def _is_whiteout(self, parts: list[bytes], entry: Entry) -> bool:
        """Whether the entry is a whiteout or metadata of AUFS, and if so, what it asks for is done."""
        if parts[0].startswith(_META) and parts[0] != _OPAQUE:
            return True
        if any(part.startswith(_WHITEOUT) for part in parts[:-1]):
            raise bad(f"{quoted(entry.name)}: a whiteout is no directory")
        base = parts[-1]
        if not base.startswith(_WHITEOUT):
            return False
        if base.startswith(_META) and base != _OPAQUE:
            return True
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise bad(f"{quoted(entry.name)}: a whiteout of nothing")
        parent_path, parent = self._directory(b"/".join(parts[:-1]))
        if base != _OPAQUE:
            self._hide(parent, name, parent_path + b"/" + name if parent_path else name)
        elif parent_path:
            os.setxattr(parent, _OPAQUE_XATTR, b"y")
        else:
            self.opaque_root = True
        return True

    def _hide(self, parent: int, name: bytes, path: bytes) -> None:
        """What this layer itself has under the name stays; a whiteout is about the layers below."""
        self._hidden.add(path)
        try:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
            self.inodes += 1
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                os.setxattr(self._directory(path)[1], _OPAQUE_XATTR, b"y")

    # Directories

    def _directory(self, path: bytes, *, make: bool = True) -> tuple[bytes, int]:
        """The directory's path without symlinks, and a descriptor of it, kept open for the entries to come.

        Where it is absent it is made with its parents, or FileNotFoundError is raised.
        """
        if path == self._last[0]:
            return self._last[1:]
        real = path
        fd = self._open.get(path)
        if fd is None:
            try:
                fd = self._walk(path, make)
            except _ThroughSymlink:
                real = self._resolved(path)
                fd = self._walk(real, make)
        self._last = (path, real, fd)
        return real, fd

    def _resolved(self, path: bytes) -> bytes:
        """The path with what its symlinks say in their place; what is absent is taken for a directory to come."""
        ahead = path.split(b"/")[::-1]
        done: list[bytes] = []
        fds: list[int | None] = []
        symlinks = 0
        try:
            while ahead:
                name = ahead.pop()
                if name in (b"", b"."):
                    continue
                if name == b"..":
                    if not done:
                        raise bad(f"{quoted(path)}: leads out of the layer through a symlink")
                    done.pop()
                    _close_one(fds.pop())
                    continue
                fd, target = _look(fds[-1] if fds else self._root, name, path)
                if target is None:
                    done.append(name)
                    fds.append(fd)
                    if len(done) > _MAX_DEPTH:
                        raise bad(f"{quoted(path)}: too deep for a path through a symlink")
                    continue
                symlinks += 1
                ahead += _target(target, path, symlinks)[::-1]
        finally:
            for fd in fds:
                _close_one(fd)
        return b"/".join(done)

    def _walk(self, path: bytes, make: bool) -> int:
        steps = []
        while path and path not in self._open:
            steps.append(path)
            path = path.rpartition(b"/")[0]
        fd = self._open[path] if path else self._root
        kept = True
        while steps:
            path = steps.pop()
            try:
                child = self._step(fd, path.rpartition(b"/")[2], path, make)
            finally:
                if not kept:
                    os.close(fd)
            fd = child
            # Of a very deep path not every level may stay open.
            if kept := len(steps) < _MAX_OPEN_DIRECTORIES // 2:
                self._open[path] = fd
        return fd

    def _step(self, parent: int, base: bytes, path: bytes, make: bool) -> int:
        try:
            return os.open(base, _DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            status = os.stat(base, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise _ThroughSymlink from None
            if not (make and _is_whiteout_device(status)):
                raise bad(f"{quoted(path)}: used as a directory but is a file") from None
        fd = self._made_directory(parent, base, path)
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, 0o755)
        self._implied[path] = None
        self._implied_length += len(path)
        if self._implied_length > _MAX_IMPLIED:
            raise bad("too many directories that have no entry of their own")
        self._times[path] = (os.fstat(fd).st_ino, 0, 0)
        return fd

    def _made_directory(self, parent: int, base: bytes, path: bytes) -> int:
        """A new descriptor of the directory, new or as an earlier entry of this layer left it."""
        try:
            os.mkdir(base, 0o700, dir_fd=parent)
        except FileExistsError:
            status = os.stat(base, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                return os.open(base, _DIRECTORY, dir_fd=parent)
            self._make_way(parent, base, path)
            os.mkdir(base, 0o700, dir_fd=parent)
        self.size += _PAGE
        self.inodes += 1
        fd = os.open(base, _DIRECTORY, dir_fd=parent)
        if path in self._hidden:
            os.setxattr(fd, _OPAQUE_XATTR, b"y")
        return fd

    def _close_some(self) -> None:
        """Keep the number of open directories bounded; only between entries, when none of them is in use."""
        if len(self._open) > _MAX_OPEN_DIRECTORIES:
            for path in list(self._open)[: len(self._open) // 2]:
                self._close(path)

    def _close(self, path: bytes) -> None:
        fd = self._open.pop(path)
        if fd == self._last[2]:
            self._last = (_ROOT, _ROOT, self._root)
        os.close(fd)

    def _close_all(self) -> None:
        for path in list(self._open):
            self._close(path)

    def _set_directory_times(self) -> None:
        """Last, because making anything in a directory changes its times. Replaced ones have another inode by now."""
        for path, (inode, atime, mtime) in self._times.items():
            self._close_some()
            parent_path, _, base = path.rpartition(b"/")
            with suppress(FileNotFoundError, ForgeError):
                _, parent = self._directory(parent_path, make=False)
                if os.stat(base, dir_fd=parent, follow_symlinks=False).st_ino == inode:
                    os.utime(base, ns=(atime, mtime), dir_fd=parent, follow_symlinks=False)

    # What is replaced

    def _make_way(self, parent: int, base: bytes, path: bytes) -> None:
        """Take away what an earlier entry of this layer left under a name."""
        self._discarded += 1
        os.rename(base, b"%d" % self._discarded, src_dir_fd=parent, dst_dir_fd=self._trash)
        self._implied.pop(path, None)
        # It may be a symlink that the last path led through.
        self._last = (_ROOT, _ROOT, self._root)
        for old in [old for old in self._open if old == path or old.startswith(path + b"/")]:
            self._close(old)

    def _empty_trash(self) -> None:
        if not self._discarded:
            return
        with os.scandir(self._trash) as found:
            names = [entry.name for entry in found]
        for name in names:
            remove_tree(self._trash, name)
        self.replaced = bool(names)


def _components(name: bytes, owner: bytes = b"") -> list[bytes]:
    """The path's components. Empty for the root itself, which some builders write as ``/``."""
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise bad(f"{quoted(owner or name)}: a path with '..'")
    if parts and name.startswith(b"/"):
        raise bad(f"{quoted(owner or name)}: an absolute path")
    return parts


def _look(parent: int | None, name: bytes, path: bytes) -> tuple[int | None, bytes | None]:
    """What a component is: a directory (its descriptor), a symlink (its target), or nothing yet (neither)."""
    if parent is None:
        return None, None
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent), None
    except FileNotFoundError:
        return None, None
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        return None, os.readlink(name, dir_fd=parent)
    if _is_whiteout_device(status):
        return None, None
    raise bad(f"{quoted(path)}: used as a directory but is a file")


def _target(target: bytes, path: bytes, symlinks: int) -> list[bytes]:
    """The components a symlink stands for."""
    if target.startswith(b"/"):
        raise bad(f"{quoted(path)}: leads through an absolute symlink")
    if symlinks > _MAX_SYMLINKS:
        raise bad(f"{quoted(path)}: leads through too many symlinks")
    parts = target.split(b"/")
    if any(part.startswith(_WHITEOUT) for part in parts):
        raise bad(f"{quoted(path)}: leads through a symlink to a whiteout")
    return parts


def _close_one(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _times(entry: Entry) -> tuple[int, int]:
    return (
        entry.atime if _EARLIEST <= entry.atime < _LATEST else 0,
        entry.mtime if _EARLIEST <= entry.mtime < _LATEST else 0,
    )


def _is_whiteout_device(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _make_special(parent: int, base: bytes, entry: Entry) -> None:
    if entry.type == tar.SYMLINK:
        os.symlink(entry.link, base, dir_fd=parent)
    elif entry.type == tar.FIFO:
        os.mkfifo(base, 0o600, dir_fd=parent)
    else:
        kind = stat.S_IFCHR if entry.type == tar.CHAR else stat.S_IFBLK
        os.mknod(base, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)


def _set_xattrs(target: int | bytes, entry: Entry) -> None:
    for name, value in (entry.xattrs or {}).items():
        if name.startswith(_OVERLAY_XATTRS):
            # They steer overlayfs itself, which hides them from whoever makes an image on it.
            raise bad(f"{quoted(entry.name)}: the extended attribute {quoted(name.encode())} is not a layer's to set")
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            # The file system has no such namespace; or user attributes on something that is no file or directory.
            lacking = error.errno == errno.EOPNOTSUPP and name != "security.capability"
            if not lacking and not (error.errno == errno.EPERM and name.startswith("user.")):
                raise


def _translated(error: OSError, entry: Entry | None) -> ForgeError:
    about = quoted(entry.name) if entry else "the layer"
    if error.errno in _EXHAUSTED:
        return ResourceExhausted(f"no room to unpack {about}: {error.strerror}", fix="free disk space")
    if error.errno in _HOST:
        return InternalError(f"unpack {about}: {error.strerror}")
    return bad(f"{about}: {error.strerror}")
