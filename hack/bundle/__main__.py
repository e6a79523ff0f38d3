"""Build the node bundle: python -m hack.bundle [--output dist] [--deb] [--image] [--microvm]

SOURCE_DATE_EPOCH (seconds) is the time of all files in it; by default that of the last commit, else 0.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput
from hack.bundle import artifacts, deb, layout
from hack.bundle.build import build

_WORK: Final = ".bundle-"
_DIGEST: Final = ".sha256"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each artifact: its path, and its size in bytes. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hack.bundle", description="Build the node bundle.")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="directory for the artifacts (dist)")
    parser.add_argument("--deb", action="store_true", help="a Debian package, too")
    parser.add_argument("--image", action="store_true", help="an OCI image, too")
    parser.add_argument("--microvm", action="store_true", help="with QEMU and a kernel for virtual machines")
    options = parser.parse_args(argv)
    flavour = layout.MICROVM if options.microvm else layout.STANDARD
    try:
        for path in make(options.output, flavour=flavour, with_deb=options.deb, with_image=options.image):
            sys.stdout.write(f"{path} {path.stat().st_size}\n")
    except ForgeError as error:
        sys.stderr.write(f"bundle: {error}\n")
        return 1
    return 0


def make(
    output: Path, *, flavour: str = layout.STANDARD, with_deb: bool = False, with_image: bool = False
) -> list[Path]:
    """The artifacts, each there whole or not at all, and beside each its digest, as ``sha256sum --check`` reads it.

    :raises ForgeError: what is missing for it, or fails.
    """
    with workplace(output) as work:
        bundle = build(work, epoch(), flavour)
        stamp = bundle.stamp
        stem = f"{layout.NAME}-{stamp.version}-{stamp.arch.machine}{stamp.suffix}"
        writers = [(f"{stem}.tar.gz", artifacts.write_archive)]
        if with_deb:
            writers.append((f"{layout.NAME}{stamp.suffix}_{stamp.version}_{stamp.arch.debian}.deb", deb.write))
        if with_image:
            writers.append((f"{stem}.oci.tar", artifacts.write_image))
        # Compressing is most of it, and leaves the interpreter's lock alone.
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda one: one[1](bundle.root, work / one[0], stamp), writers))
        for file, _ in writers:
            with (work / file).open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            (work / f"{file}{_DIGEST}").write_text(f"{digest}  {file}\n")
        for file, _ in writers:
            (work / f"{file}{_DIGEST}").replace(output / f"{file}{_DIGEST}")
        return [(work / file).replace(output / file) for file, _ in writers]


@contextmanager
def workplace(output: Path) -> Iterator[Path]:
    """An empty directory below ``output``, gone afterwards; what builds that were killed have left there goes, too.

    :raises FailedPrecondition: another build is under way there.
    """
    output.mkdir(parents=True, exist_ok=True)
    directory = os.open(output, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"another build is under way in {output}") from None
        for left in output.glob(f"{_WORK}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_WORK, dir=output.resolve()) as name:
            yield Path(name)
    finally:
        os.close(directory)


def epoch() -> int:
    """Seconds. :raises InvalidInput: SOURCE_DATE_EPOCH is no number."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        given = _committed() or "0"
    if not given.isascii() or not given.isdigit():
        raise InvalidInput("SOURCE_DATE_EPOCH", f"{given!r} is no number of seconds")
    return int(given)


def _committed() -> str:
    """When the last commit was made; empty where this is no clone, or git is not installed."""
    # Who builds need not own the clone.
    git = ["git", "-c", f"safe.directory={layout.REPOSITORY}", "-C", str(layout.REPOSITORY)]
    try:
        done = subprocess.run([*git, "log", "-1", "--format=%ct"], capture_output=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.decode().strip()


if __name__ == "__main__":
    raise SystemExit(main())
