"""How a program learns that its state may be somebody else's, too: a file whose content is another in every copy.

A container asks for it with the variable ``FORGEONE_GENERATION``, a path in the container: there it finds 32 random
hexadecimal digits. They are the same as long as the container lives. One that is made from a checkpoint has others, so
that a program which reads them before it draws from a generator of its own knows when to seed it anew. As with a
virtual machine's VMGENID only equality means anything.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from engines.base import Mount
from forgeone_shim.errors import InvalidInput, syscall_error

VARIABLE: Final = "FORGEONE_GENERATION"
FILE: Final = "generation"

_FIELD: Final = f"config.envs[{VARIABLE}]"
_TAKEN: Final = ("/proc", "/sys", "/dev")


def place(env: Sequence[str], mounts: Sequence[Mount]) -> str:
    """Where a container with that environment (``KEY=value``) wants the file; empty: nowhere.

    Of two entries the last counts. A mount of its own at that place comes before ours.

    :raises InvalidInput: there cannot be a file.
    """
    prefix = f"{VARIABLE}="
    asked = next((entry[len(prefix) :] for entry in reversed(env) if entry.startswith(prefix)), "")
    if not asked:
        return ""
    # Of two slashes at the beginning normpath() leaves both, as POSIX lets them mean something.
    plain = asked.startswith("/") and not asked.startswith("//") and posixpath.normpath(asked) == asked
    if not plain or "\0" in asked or asked == "/":
        raise InvalidInput(_FIELD, f"{asked!r} is not the absolute path of a file", fix="/run/generation")
    if any(asked == one or asked.startswith(f"{one}/") for one in _TAKEN):
        raise InvalidInput(_FIELD, f"{asked!r} is in a file system of the kernel's", fix="/run/generation")
    taken = {posixpath.normpath(mount.destination) for mount in mounts}
    return "" if asked in taken else asked


def mount(env: Sequence[str], mounts: Sequence[Mount], bundle: Path) -> tuple[Mount, ...]:
    """The file, made in the container's bundle, as a mount; nothing where none is wanted. May be repeated.

    :raises InvalidInput: there cannot be a file where it is wanted.
    """
    destination = place(env, mounts)
    if not destination:
        return ()
    path = bundle / FILE
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            os.write(fd, f"{os.urandom(16).hex()}\n".encode())
            # Readable for every user of the container, whatever the umask.
            os.fchmod(fd, 0o444)
        finally:
            os.close(fd)
    except FileExistsError:
        pass
    except OSError as error:
        raise syscall_error("write", path, error) from error
    return (Mount(destination, str(path), readonly=True, selinux_relabel=True),)
