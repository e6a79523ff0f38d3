"""The command lines of verbs that have verbs of their own."""

from __future__ import annotations

import argparse
from typing import Any


def images(verbs: Any, common: argparse.ArgumentParser) -> None:
    """``forge images export|import``."""
    export = _verb(verbs, "export", "images as one file: an OCI image layout in a tar", common)
    export.add_argument("-o", dest="file", default="-", metavar="FILE", help="where to (default: standard output)")
    export.add_argument("images", nargs="+", metavar="image", help="a name: under that name; an id: under all it has")

    load = _verb(verbs, "import", "bring the images of such a file, or a .forgepkg, to this node", common)
    load.add_argument("--name", default="", help="what its only image is to be called")
    load.add_argument("file", nargs="?", default="-", help="default: standard input")


def dna(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, output: argparse.ArgumentParser) -> None:
    """``forge dna``."""
    verbs = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)

    show = _verb(verbs, "show", "who a container is", common, output)
    show.add_argument("container", help="a container, or a pod with one container")

    diff = _verb(verbs, "diff", "what decides what runs and differs between two containers", common, output)
    diff.add_argument("before", help="a container, or a pod with one container")
    diff.add_argument("after", help="another")

    learn = _verb(verbs, "learn", "what a watched container did is usual for its image", common, output)
    learn.add_argument("--anew", action="store_true", help="forget what was learned before")
    learn.add_argument("container", help="a container, running or ended, or a pod with one container")

    pin = _verb(verbs, "pin", "compare the containers of an image with what was learned of it", common, output)
    pin.add_argument("--remove", action="store_true", help="compare them with nothing any more")
    pin.add_argument("--file", default="", metavar="FILE", help="a baseline that was learned elsewhere; -: stdin")
    pin.add_argument("image", nargs="?", default="", help="by name or id")

    drift = _verb(verbs, "drift", "how a watched container differs from what is usual for its image", common, output)
    drift.add_argument("container", help="a container, running or ended, or a pod with one container")

    seccomp = _verb(verbs, "seccomp", "a seccomp profile that lets through what is usual for an image", common)
    seccomp.add_argument("image", help="by name or id")


def packages(
    parser: argparse.ArgumentParser,
    common: argparse.ArgumentParser,
    output: argparse.ArgumentParser,
    login: argparse.ArgumentParser,
) -> None:
    """``forge pkg``."""
    verbs = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)

    new = _verb(verbs, "new", "a directory to build a package from", common)
    new.add_argument("name", help="the package's, such as acme/logger")
    new.add_argument("directory", nargs="?", default="", help="default: the name's last word")

    keygen = _verb(verbs, "keygen", "a key to sign with (FILE, its owner's alone) and to trust (FILE.pub)", common)
    keygen.add_argument("file", metavar="FILE")

    build = _verb(verbs, "build", "make a .forgepkg of forgepkg.toml", common)
    build.add_argument("--key", default="", metavar="FILE", help="sign it; without one it is not signed")
    build.add_argument("-o", dest="file", default="", metavar="FILE", help="default: NAME-VERSION.forgepkg here")
    build.add_argument("project", nargs="?", default=".", help="a directory with forgepkg.toml, or such a file")

    sign = _verb(verbs, "sign", "add a signature to a package", common)
    sign.add_argument("--key", required=True, metavar="FILE")
    sign.add_argument("-o", dest="file", default="", metavar="FILE", help="default: the package itself")
    sign.add_argument("package")

    trust = argparse.ArgumentParser(add_help=False)
    trust.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="FILE",
        help="a public key or a directory of them (default: packages.trusted_keys)",
    )
    trust.add_argument("--allow-unsigned", action="store_true", help="a trusted signature is not needed")
    trust.add_argument("--config", default="", metavar="FILE", help="forgeoned's configuration file")

    verify = _verb(verbs, "verify", "check every signature and every byte of a package", common, trust)
    verify.add_argument("package")

    inspect = _verb(verbs, "inspect", "what a package says of itself, verified or not", common, output)
    inspect.add_argument("package")

    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--config", default="", metavar="FILE", help="forgeoned's configuration file")

    push = _verb(verbs, "push", "give a package to a registry", common, login, where)
    push.add_argument("package")
    push.add_argument("reference", help="REGISTRY/REPOSITORY[:TAG] (default tag: the package's version)")

    pull = _verb(verbs, "pull", "get a package from a registry, verified", common, login, trust)
    pull.add_argument("-o", dest="file", default="", metavar="FILE", help="default: NAME-VERSION.forgepkg here")
    pull.add_argument("reference")


def verify(parser: argparse.ArgumentParser) -> None:
    """``forge verify``."""
    parser.add_argument("--config", default="", metavar="FILE", help="forgeoned's configuration file")
    parser.add_argument("--namespace", default="", help="by the policies for pods of this Kubernetes namespace")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="FILE",
        help="a public key, one of which must have signed it, in place of the node's policies",
    )
    parser.add_argument("image")


def _verb(verbs: Any, name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=parents
    )
    return made
