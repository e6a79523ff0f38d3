"""``forge pull``, and the progress bars that ``forge run`` shares; ``forge rmi``."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli.client import Client
from forgeone_shim.cli.output import print_json, size
from forgeone_shim.errors import InternalError, InvalidInput, NotFound
from forgeone_shim.rpc import node_pb2

_STATES = {
    node_pb2.LAYER_STATE_WAITING: "waiting",
    node_pb2.LAYER_STATE_DOWNLOADING: "pulling",
    node_pb2.LAYER_STATE_EXISTS: "exists",
    node_pb2.LAYER_STATE_DONE: "done",
}
_FINISHED = (node_pb2.LAYER_STATE_EXISTS, node_pb2.LAYER_STATE_DONE)


def command(client: Client, args: argparse.Namespace) -> int:
    """Pull and print the image's id."""
    image = pull(client, args.image, credentials(args), args.handler, quiet=args.quiet)
    if args.output == "json":
        print_json(image)
    else:
        sys.stdout.write(f"{image.id}\n")
    return 0


def remove(client: Client, args: argparse.Namespace) -> int:
    """Remove images by name or id; one that is not there is an error, as for every other verb."""
    for name in args.images:
        spec = cri.ImageSpec(image=name)
        # Of a name that stands for two images an ImageStatus tells of the one that the default handler runs.
        here = client.call(client.images.ListImages, cri.ListImagesRequest(filter=cri.ImageFilter(image=spec)))
        if not here.images:
            raise NotFound("image", name)
        client.call(client.images.RemoveImage, cri.RemoveImageRequest(image=spec))
        sys.stdout.write(f"{name}\n")
    return 0


def pull(client: Client, image: str, login: Any, handler: str, *, quiet: bool = False) -> Any:
    """Pull ``image``, showing each layer on standard error: bars on a terminal, a line for each finished layer else.

    ``handler`` is that of the pods it is for, empty for the default.
    """
    request = node_pb2.PullImageRequest(image=image, credentials=login, runtime_handler=handler)
    shown = _Silent() if quiet else _Bars(image) if sys.stderr.isatty() else _Lines(image)
    with client.errors(), shown:
        for message in client.node.PullImage(request):
            if message.HasField("image"):
                return message.image
            shown.layer(message.layer)
    raise InternalError(f"the pull of {image} ended without an image")


def credentials(args: argparse.Namespace) -> Any:
    """What ``--username`` and ``--password-stdin`` give; asks on a terminal for a password that is missing."""
    if not args.username:
        if args.password_stdin:
            raise InvalidInput("--password-stdin", "needs --username")
        return node_pb2.Credentials()
    if args.password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = getpass.getpass(f"password of {args.username}: ")
    return node_pb2.Credentials(username=args.username, password=password)


class _Silent:
    """Shows nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def layer(self, update: Any) -> None:
        """One layer's state."""


class _Lines(_Silent):
    """A line for each layer that is finished."""

    def __init__(self, image: str) -> None:
        sys.stderr.write(f"pulling {image}\n")

    def layer(self, update: Any) -> None:
        if update.state in _FINISHED:
            sys.stderr.write(f"{_label(update)}  {_STATES[update.state]}  {size(update.total)}\n")


class _Bars(_Silent):
    """A bar per layer."""

    def __init__(self, image: str) -> None:
        # Here, not above: rich takes longer to import than most commands take to run.
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        console = Console(stderr=True)
        console.print(f"pulling {image}", markup=False, highlight=False)
        columns = ("{task.description}", BarColumn(), TextColumn("{task.fields[state]:8}"), DownloadColumn())
        self._progress = Progress(*columns, TransferSpeedColumn(), console=console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def layer(self, update: Any) -> None:
        state = _STATES.get(update.state, "")
        if update.digest not in self._tasks:
            self._tasks[update.digest] = self._progress.add_task(_label(update), total=update.total, state=state)
        done = update.total if update.state in _FINISHED else update.done
        self._progress.update(self._tasks[update.digest], completed=done, total=update.total, state=state)


def _label(update: Any) -> str:
    return str(update.digest.partition(":")[2][:12])
