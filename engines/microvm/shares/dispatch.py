"""A request of the guest's to its answer."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Final

from engines.microvm.shares import directories, extended, files, fuse, tree
from engines.microvm.shares.fuse import Opcode, Request
from engines.microvm.shares.state import Share

Operation = Callable[[Share, Request], "bytes | memoryview | None"]
OPERATIONS: Final[Mapping[int, Operation]] = {
    Opcode.LOOKUP: tree.lookup,
    Opcode.FORGET: tree.forget,
    Opcode.GETATTR: tree.getattr_,
    Opcode.SETATTR: tree.setattr_,
    Opcode.READLINK: tree.readlink,
    Opcode.SYMLINK: tree.symlink,
    Opcode.MKNOD: tree.mknod,
    Opcode.MKDIR: tree.mkdir,
    Opcode.UNLINK: tree.unlink,
    Opcode.RMDIR: tree.rmdir,
    Opcode.RENAME: tree.rename,
    Opcode.LINK: tree.link,
    Opcode.OPEN: files.open_,
    Opcode.READ: files.read,
    Opcode.WRITE: files.write,
    Opcode.STATFS: tree.statfs,
    Opcode.RELEASE: files.release,
    Opcode.FSYNC: files.fsync,
    Opcode.SETXATTR: extended.setxattr,
    Opcode.GETXATTR: extended.getxattr,
    Opcode.LISTXATTR: extended.listxattr,
    Opcode.REMOVEXATTR: extended.removexattr,
    Opcode.FLUSH: files.flush,
    Opcode.OPENDIR: directories.opendir,
    Opcode.READDIR: directories.readdir,
    Opcode.RELEASEDIR: files.release,
    Opcode.FSYNCDIR: files.fsync,
    Opcode.CREATE: files.create,
    Opcode.BATCH_FORGET: tree.batch_forget,
    Opcode.FALLOCATE: files.fallocate,
    Opcode.READDIRPLUS: directories.readdirplus,
    Opcode.RENAME2: tree.rename2,
    Opcode.LSEEK: files.lseek,
    Opcode.COPY_FILE_RANGE: files.copy_file_range,
}
# Beyond these numbers a kernel takes none for an error.
_ERRNO_MAX: Final = 511


def handle(share: Share, message: memoryview) -> bytes | memoryview | None:
    """The whole answer to a whole message, if it gets one. One from :data:`Share.answer` is sent before the next."""
    request = Request(message)
    operation = OPERATIONS.get(request.opcode)
    if operation is None:
        # isatty(3) is an ioctl(2), and not every kernel says that a file is none for itself.
        code = errno.ENOTTY if request.opcode == Opcode.IOCTL else errno.ENOSYS
        return None if request.opcode in fuse.SILENT else fuse.refusal(request.unique, code)
    try:
        if request.opcode not in fuse.SILENT:
            share.caller.become(request.uid, request.gid)
        body = operation(share, request)
    except OSError as error:
        return _refused(request, error.errno or errno.EIO)
    except (ValueError, OverflowError):
        # Numbers that no call of the kernel's takes.
        return _refused(request, errno.EINVAL)
    if request.opcode in fuse.SILENT or body is None:
        return None
    if isinstance(body, memoryview):
        size = fuse.OUT_HEADER.size + len(body)
        fuse.OUT_HEADER.pack_into(share.answer, 0, size, 0, request.unique)
        return share.answer[:size]
    return fuse.answer(request.unique, body)


def _refused(request: Request, code: int) -> bytes | None:
    if request.opcode in fuse.SILENT:
        return None
    return fuse.refusal(request.unique, code if 0 < code <= _ERRNO_MAX else errno.EIO)
