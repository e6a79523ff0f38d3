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


def contracts(
    contract: argparse.ArgumentParser,
    policy: argparse.ArgumentParser,
    common: argparse.ArgumentParser,
    output: argparse.ArgumentParser,
) -> None:
    """``forge contract`` and ``forge policy``."""
    given = argparse.ArgumentParser(add_help=False)
    given.add_argument("--config", default="", metavar="FILE", help="forgeoned's configuration file")
    given.add_argument("--policies", default="", metavar="DIRECTORY", help="in place of contract.policies_dir")
    given.add_argument(
        "--issuers", action="append", default=[], metavar="FILE", help="a public key, or a directory of them"
    )
    given.add_argument("--default", default=None, metavar="NAME", help="in place of contract.default_policy")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("-n", "--namespace", default="", help="of pods whose manifest says none (default: default)")

    verbs = contract.add_subparsers(dest="action", metavar="COMMAND", required=True)
    lint = _verb(verbs, "lint", "whether contracts, and those of pods' manifests, can be read", common, where)
    lint.add_argument("files", nargs="+", metavar="file", help="a contract, signed or not, or a manifest; -: stdin")

    explain = _verb(
        verbs, "explain", "what a contract comes to under policies, and whose word it is", common, output, given, where
    )
    explain.add_argument("--pod", default="pod", help="for a contract by itself: the pod's name")
    explain.add_argument("--container", default="", metavar="NAME", help="for one container of the pod")
    explain.add_argument("file", help="a contract, signed or not, or a manifest")

    sign = _verb(verbs, "sign", "put a contract into an envelope with a signature, or add one to an envelope", common)
    sign.add_argument("--key", required=True, metavar="FILE")
    sign.add_argument("-o", dest="file_out", default="-", metavar="FILE", help="default: standard output")
    sign.add_argument("file", help="a contract")

    test = _verb(verbs, "test", "try policies on pods' manifests", common, output, given, where)
    test.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="POINT",
        help="where a node asks, such as exec (default: sandbox, create and start)",
    )
    test.add_argument("--engine", default="native", choices=("native", "wasm", "microvm"))
    test.add_argument("--user", type=int, default=0, help="of images whose containers ask for none (default: 0)")
    test.add_argument("--digest", default="", help="of images by tag")
    test.add_argument("--signed-by", action="append", default=[], metavar="SIGNER", help="as in trusted_issuers")
    test.add_argument("--entropy", type=int, default=256, metavar="BITS", help="that containers start with")
    test.add_argument("--trust-score", type=int, default=100, metavar="N", help="that containers have")
    test.add_argument("files", nargs="+", metavar="file", help="a manifest; -: stdin")

    verbs = policy.add_subparsers(dest="action", metavar="COMMAND", required=True)
    _verb(verbs, "list", "the policies of this node", common, output, given)
    check = _verb(verbs, "check", "whether policies can be used, and together", common, given)
    check.add_argument("files", nargs="*", metavar="file", help="default: those of contract.policies_dir")
    _verb(
        verbs, "crd", "the CustomResourceDefinition of ZTAPolicy, for a cluster that gives its nodes policies", common
    )


def audit(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, output: argparse.ArgumentParser) -> None:
    """``forge audit``."""
    verbs = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--log", default="", metavar="DIR", help="an exported log (default: this node's)")
    where.add_argument("--key", default="", metavar="KEY", help="whose it has to be: NAME+ID+KEY, or a file with that")
    where.add_argument("--config", default="", metavar="FILE", help="forgeoned's configuration file")

    tail = _verb(verbs, "tail", "show the last entries", common, output, where)
    tail.add_argument("-n", dest="lines", type=int, default=20, metavar="N", help="so many (default: 20)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on with those to come")

    verify = _verb(verbs, "verify", "look at every byte: whether all is as it was signed", common, where)
    verify.add_argument(
        "--since", default="", metavar="N|FILE", help="read entries from N on only; or an earlier checkpoint, kept"
    )

    receipt = _verb(verbs, "receipt", "the proof that an entry is in the log", common, where)
    receipt.add_argument("-o", dest="file", default="-", metavar="FILE", help="where to; %% is the entry's number")
    receipt.add_argument("entry", help="audit:N, or the id of a container, pod or image: all of its entries")

    check = _verb(verbs, "check", "verify a receipt, without a log", common, output)
    check.add_argument("--key", required=True, metavar="KEY", help="whose it has to be: NAME+ID+KEY, or a file")
    check.add_argument("receipt", metavar="FILE")

    proof = _verb(verbs, "proof", "the proof that the log only grew, as witnesses are asked with", common, where)
    proof.add_argument("--from", dest="old", required=True, metavar="N", help="since it had so many entries")
    proof.add_argument("-o", dest="file", default="-", metavar="FILE")

    export = _verb(verbs, "export", "the log as files that a web server can serve", common, where)
    export.add_argument("directory")

    key = _verb(verbs, "key", "the key that the node signs with", common)
    _verb(key.add_subparsers(dest="key_action", metavar="rotate", required=True), "rotate", "replace it", common)

    _verb(verbs, "accept", "let things start again after the log was found damaged", common)


def microvm(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, output: argparse.ArgumentParser) -> None:
    """``forge microvm``."""
    verbs = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--config", default="", metavar="FILE", help="forgeoned's configuration file")
    known = argparse.ArgumentParser(add_help=False)
    known.add_argument("directory", nargs="?", default="", help="a boot set (default: this node's)")

    build = _verb(verbs, "build", "put together what machines boot: kernel, modules and agent", common, output, where)
    build.add_argument("--output-dir", dest="directory", default="", metavar="DIR", help="there, for other nodes")

    status = _verb(verbs, "status", "what machines of this node boot, and what executes them", common, output, where)
    status.add_argument("--probe", action="store_true", help="try anew whether KVM works")

    sign = _verb(verbs, "sign", "sign a boot set's manifest", common, output, where, known)
    sign.add_argument("--key", required=True, metavar="FILE", help="as forge pkg keygen makes it")

    verify = _verb(verbs, "verify", "who signed a boot set; fails where it is nobody", common, output, where, known)
    verify.add_argument(
        "--trust", action="append", default=[], metavar="FILE", help="a public key, in place of the node's"
    )


def _verb(verbs: Any, name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=parents
    )
    return made
