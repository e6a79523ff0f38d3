"""``forge images``, and its export and import."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from forgeone_shim.cli import listing
from forgeone_shim.cli.client import Client
from forgeone_shim.errors import InvalidInput
from forgeone_shim.rpc import node_pb2

_CHUNK: Final = 1 << 20


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
        return _send(client, sys.stdin.buffer, name)
    try:
        file = Path(path).open("rb")  # noqa: SIM115
    except OSError as error:
        raise InvalidInput("file", f"{path}: {error.strerror}") from None
    with file:
        return _send(client, file, name)


def _send(client: Client, file: BinaryIO, name: str) -> list[Any]:
    with client.errors():
        return list(client.node.ImportImages(_messages(file, name)).images)


def _messages(file: BinaryIO, name: str) -> Iterator[Any]:
    yield node_pb2.ImportImagesRequest(name=name)
    while piece := file.read(_CHUNK):
        yield node_pb2.ImportImagesRequest(data=piece)
