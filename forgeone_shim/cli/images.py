"""``forge images``, and its export and import."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from forgeone_shim.cli import listing
from forgeone_shim.cli.client import Client
from forgeone_shim.errors import InvalidInput
from forgeone_shim.rpc import node_pb2

_CHUNK: Final = 1 << 20
_STDIN: Final = 0


def command(client: Client, args: argparse.Namespace) -> int:
    """List, export or import."""
    match args.action:
        case "export":
            return export(client, args)
        case "import":
            return load(client, args)
        case _:
            return listing.images(client, args)


def export(client: Client, args: argparse.Namespace) -> int:
    """Write images to a file, which is there whole or not at all, or to standard output."""
    request = node_pb2.ExportImagesRequest(images=args.images)
    with client.errors():
        pieces = (message.data for message in client.node.ExportImages(request))
        if args.file != "-":
            # Not above: every verb imports this module, and few need packages.
            from forgeone_shim.package.file import write_whole

            write_whole(Path(args.file), pieces)
            return 0
        if os.isatty(sys.stdout.fileno()):
            raise InvalidInput("-o", "an archive is nothing for a terminal", fix="forge images export -o FILE ...")
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return 0


def load(client: Client, args: argparse.Namespace) -> int:
    """Bring images here, and print the names that they have now."""
    for image in send(client, args.file, args.name):
        for name in image.repo_tags or image.repo_digests:
            sys.stdout.write(f"{name}\n")
    return 0


def send(client: Client, path: str, name: str = "") -> list[Any]:
    """Import from a file (``-``: standard input); the images.

    :raises InvalidInput: it cannot be read.
    """
    if path == "-":
        return _send(client, _STDIN, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput("file", f"{path}: {error.strerror}") from None
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise InvalidInput("file", f"{path} is a directory", fix="give an archive")
        return _send(client, fd, name)
    finally:
        os.close(fd)


def _send(client: Client, fd: int, name: str) -> list[Any]:
    with client.errors():
        return list(client.node.ImportImages(_messages(fd, name)).images)


def _messages(fd: int, name: str) -> Iterator[Any]:
    """Read by a thread of gRPC's, which may still wait for a pipe when this process ends: so without Python's locks."""
    yield node_pb2.ImportImagesRequest(name=name)
    while piece := os.read(fd, _CHUNK):
        yield node_pb2.ImportImagesRequest(data=piece)
