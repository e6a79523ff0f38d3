"""Paths of the host's that libraries have compiled in, overwritten where they stand: the bundle's must not follow them.

A host's ``/etc/ld.so.preload`` and ``/etc/ld.so.cache`` would bring libraries made for another libc into our processes,
and so would its directories of libraries (name service plugins, OpenSSL's modules, character sets). What is below
``/dev/null`` is no file on any host, and nobody can make one below ``/sys/dev``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from forgeone_shim.errors import InternalError
from hack.bundle.layout import Arch

_NOWHERE: Final = "/dev/null"
_NO_DIRECTORY: Final = "/sys/dev/"


def replacements(arch: Arch) -> Mapping[str, Sequence[tuple[bytes, bytes]]]:
    """By a library's name, what is replaced by what; both are equally long, and each is there at least once."""
    usr = f"/usr/lib/{arch.multiarch}"
    return MappingProxyType(
        {
            arch.loader: (
                _file("/etc/ld.so.cache"),
                _file("/etc/ld.so.preload"),
                # The directories that are looked through last, as they lie in the loader: one text behind the other.
                _directories(f"/lib/{arch.multiarch}/", f"{usr}/", "/lib/", "/usr/lib/"),
            ),
            "libc.so.6": (_file(f"{usr}/gconv"), _file("/usr/lib/locale")),
            # nft shows rules of iptables by that program's modules.
            "libxtables.so.12": (_file(f"{usr}/xtables"),),
            "libcrypto.so.3": (_file("/usr/lib/ssl"), _file(f"{usr}/engines-3"), _file(f"{usr}/ossl-modules")),
        }
    )


def blinded(name: str, content: bytes, arch: Arch) -> bytes:
    """The library ``name`` without the host's paths.

    :raises InternalError: a path is not in it: another release has it elsewhere, and would follow it.
    """
    for old, new in replacements(arch).get(name, ()):
        if old not in content:
            raise InternalError(f"{name} does not have {old!r}, which is to be replaced")
        content = content.replace(old, new)
    return content


def _file(path: str) -> tuple[bytes, bytes]:
    """``/dev/null`` and slashes, then as much of the path's end as fits."""
    room = len(path) - len(_NOWHERE) - 1
    return path.encode(), f"{_NOWHERE}/{path[-room:].replace('/', '.')}".encode()


def _directories(*paths: str) -> tuple[bytes, bytes]:
    """Each with its end as in C; the loader knows their lengths, so that all stay as long as they are."""
    old = b"".join(path.encode() + b"\0" for path in paths)
    # The shortest has room for /sys/ only, where nobody can make a file either.
    new = b"".join(
        (
            _NO_DIRECTORY.ljust(len(path), "/") if len(path) >= len(_NO_DIRECTORY) else "/sys".ljust(len(path), "/")
        ).encode()
        + b"\0"
        for path in paths
    )
    return old, new
