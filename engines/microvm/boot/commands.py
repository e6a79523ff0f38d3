"""``forge microvm``: what machines of this node boot, and who signed it. The command finds this as an entry point."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from engines.microvm.boot import assembly, bootset, probe, settings
from engines.microvm.boot.bootset import BootSet
from engines.microvm.boot.settings import BootSettings
from forgeone_shim.attestation import keys
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import AlreadyExists, PermissionDenied

Report = dict[str, str]


def command(args: argparse.Namespace, config: Mapping[str, Any]) -> Report:
    """Run the verb ``args.action`` with forgeoned's configuration; returns what is to be shown."""
    return _ACTIONS[args.action](args, settings.read(config["microvm"]), Path(str(config["root"])))


def _build(args: argparse.Namespace, asked: BootSettings, root: Path) -> Report:
    """The configuration's boot set, or one in a directory of its own to be signed and brought to nodes."""
    if not args.directory:
        return _told(assembly.assemble(asked, root, NEVER))
    place = Path(args.directory).absolute()
    if place.exists():
        raise AlreadyExists(f"{place} exists", fix="choose another name, or move it away")
    assembly.make(assembly.plan(replace(asked, boot_set="")), place, NEVER)
    return _told(bootset.read(place))


def _status(args: argparse.Namespace, asked: BootSettings, root: Path) -> Report:
    boot = assembly.assemble(asked, root, NEVER)
    found = probe.processor(asked, boot, root, NEVER, anew=args.probe)
    why = {"why": found.why} if found.why else {}
    return _told(boot) | {"accel": found.accel.value, "cmdline": boot.cmdline(found.accel, found.khz)} | why


def _sign(args: argparse.Namespace, asked: BootSettings, root: Path) -> Report:
    key = keys.read_signing_key(Path(args.key))
    place = _place(args, asked, root)
    bootset.sign(place, key)
    return {"directory": str(place), "signed by": key.public.id}


def _verify(args: argparse.Namespace, asked: BootSettings, root: Path) -> Report:
    """Fails where no key that is trusted has signed, whether this node asks for that or not."""
    place = _place(args, asked, root)
    found = bootset.read(place)
    paths = [Path(path) for path in args.trust]
    trusted = [keys.read_public_key(path) for path in paths] if paths else keys.read_trusted(Path(asked.boot_keys))
    signers = bootset.signers(found, tuple(trusted))
    if not signers:
        raise PermissionDenied(
            f"{place}: none of {', '.join(args.trust) or f'the keys in {asked.boot_keys}'} signed it"
        )
    return _told(replace(found, signers=signers))


def _place(args: argparse.Namespace, asked: BootSettings, root: Path) -> Path:
    if args.directory:
        return Path(args.directory)
    return assembly.assemble(replace(asked, require_signed_boot=False), root, NEVER).directory


def _told(boot: BootSet) -> Report:
    said = boot.manifest
    return {
        "directory": str(boot.directory),
        "manifest": boot.digest,
        "release": said.release,
        "kernel": said.kernel.digest,
        "initrd": said.initrd.digest,
        "agent": said.agent.digest,
        "signed by": " ".join(boot.signers) or "nobody who is trusted here",
    }


_ACTIONS: Final[Mapping[str, Callable[[argparse.Namespace, BootSettings, Path], Report]]] = {
    "build": _build,
    "status": _status,
    "sign": _sign,
    "verify": _verify,
}
