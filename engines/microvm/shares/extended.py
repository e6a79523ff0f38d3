"""Operations on extended attributes: a user's, and files' capabilities.

Those of the host's policies (``trusted``, labels, lists of who may do what) mean nothing in the guest, and are not its
to change.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from engines.microvm.shares import fuse
from engines.microvm.shares.fuse import Request
from engines.microvm.shares.state import Share

_USER: Final = b"user."
_CAPABILITY: Final = b"security.capability"
_NAME_MAX: Final = 255


def setxattr(share: Share, request: Request) -> bytes:
    """SETXATTR."""
    size, flags = request.fields(fuse.XATTR)
    name = _name(request, fuse.XATTR.size)
    at = fuse.XATTR.size + len(name) + 1
    value = request.body[at : at + size]
    if len(value) < size:
        raise OSError(errno.EINVAL, "less of a value than there should be")
    node = share.nodes.changeable(share.nodes.get(request.nodeid))
    os.setxattr(share.path(node.fd), name, value, flags)
    return b""


def getxattr(share: Share, request: Request) -> bytes:
    """GETXATTR."""
    size, _ = request.fields(fuse.XATTR)
    name = _name(request, fuse.XATTR.size)
    return _answer(os.getxattr(share.path(share.nodes.get(request.nodeid).fd), name), size)


def listxattr(share: Share, request: Request) -> bytes:
    """LISTXATTR."""
    size, _ = request.fields(fuse.XATTR)
    found = os.listxattr(share.path(share.nodes.get(request.nodeid).fd))
    names = (os.fsencode(name) for name in found)
    return _answer(b"".join(name + b"\0" for name in names if _served(name)), size)


def removexattr(share: Share, request: Request) -> bytes:
    """REMOVEXATTR."""
    name = _name(request, 0)
    node = share.nodes.changeable(share.nodes.get(request.nodeid))
    os.removexattr(share.path(node.fd), name)
    return b""


def _name(request: Request, after: int) -> bytes:
    (name,) = request.texts(1, after)
    if not _served(name) or len(name) > _NAME_MAX:
        raise OSError(errno.EOPNOTSUPP, "no attribute of the guest's")
    return name


def _served(name: bytes) -> bool:
    return name.startswith(_USER) or name == _CAPABILITY


def _answer(value: bytes, size: int) -> bytes:
    if not size:
        return fuse.SIZE_OUT.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, "longer than there is room")
    return value
