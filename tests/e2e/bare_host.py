"""A host without anything of ForgeOne's and without Python: the oldest release served, in a mount namespace of its own.

It is an overlay on what debootstrap has made, so each test begins with a fresh one. It shares the kernel, processes,
network, cgroups and ``$TMPDIR`` with the machine that runs the tests, and nothing else of its file system.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hack.guest import sources

# glibc 2.31 both.
_OLDEST: Final[Mapping[str, str]] = MappingProxyType({"debian": "bullseye", "ubuntu": "focal"})
# What no test uses, with all that is there for it alone: a third of debootstrap's time.
_WITHOUT: Final = ("apt", "e2fsprogs", "gpgv", "tzdata")
_UNSHARE: Final = ("unshare", "--mount", "--propagation", "private", "--")
# As switch_root does it: what was the root is under the new one, and unmounted there.
_ENTER: Final = """
set -e
# In memory: an installer syncs what it writes.
mount -t tmpfs -o mode=755 none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "$3,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
for shared in proc sys dev; do mount --rbind "/$shared" "./$shared"; done
# Not what others have mounted below it: it would stay mounted as long as this runs.
mkdir -p "./$2"
mount --bind "$2" "./$2"
mount -t tmpfs -o mode=755 none ./run
pivot_root . .
umount -l .
cd /
mount --make-rshared /
echo ready
exec cat
"""


class Base:
    """The release, unpacked by debootstrap while other things are done: begun by the constructor."""

    def __init__(self, directory: Path) -> None:
        """:raises LookupError: it cannot be had here; says why."""
        system = platform.freedesktop_os_release()
        self.suite = _OLDEST.get(system["ID"], "")
        if not self.suite:
            raise LookupError(f"no older release of {system['ID']} is known")
        if shutil.which("debootstrap") is None:
            raise LookupError("debootstrap is not installed: apt-get install debootstrap")
        found = sources.mirror(system["VERSION_CODENAME"])
        if found is None:
            raise LookupError(f"this host's apt names no mirror of {system['VERSION_CODENAME']}")
        self.tree, self._log = directory / "tree", directory / "debootstrap.log"
        self._process: subprocess.Popen[bytes] | None = None
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("debootstrap", "--variant=minbase", f"--exclude={','.join(_WITHOUT)}"),
                    *(self.suite, str(self.tree), found.url),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ready(self, seconds: float) -> Path:
        """Its root, finished. :raises LookupError: debootstrap failed; carries the end of what it said."""
        assert self._process is not None
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.close()
            raise LookupError(f"debootstrap {self.suite} took longer than {seconds:.0f} s") from None
        if code:
            raise LookupError(f"debootstrap {self.suite} failed: {self._log.read_text(errors='replace')[-500:]}")
        return self.tree

    def close(self) -> None:
        """End debootstrap, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


class BareHost:
    """One that runs: a process holds its namespace. A context manager; leaving it takes all away."""

    def __init__(self, layers: Sequence[Path], directory: Path) -> None:
        """With the topmost of the layers first; ``directory`` is made, and stays empty."""
        self._stack = ExitStack()
        with ExitStack() as undo:
            directory.mkdir(parents=True)
            lower = f"lowerdir={':'.join(map(str, layers))}"
            self._holder = subprocess.Popen(
                [*_UNSHARE, "sh", "-c", _ENTER, "sh", str(directory), tempfile.gettempdir(), lower],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            undo.callback(self._release)
            assert self._holder.stdout is not None
            if self._holder.stdout.readline() != "ready\n":
                self._holder.wait()
                assert self._holder.stderr is not None
                raise RuntimeError(f"a bare host did not start: {self._holder.stderr.read()}")
            self.root = Path(f"/proc/{self._holder.pid}/root")
            self._stack = undo.pop_all()

    def command(self, *argv: str) -> list[str]:
        """The command line that runs another there."""
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--", *argv]

    def run(
        self, *argv: str, code: int = 0, env: Mapping[str, str] | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """What a program there says; with ``env`` as its whole environment, and ``code`` expected."""
        done = subprocess.run(
            self.command(*argv),
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env=dict(env or {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}),
        )
        assert done.returncode == code, f"{argv} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def mounts(self) -> list[str]:
        """Where something is mounted there."""
        lines = Path(f"/proc/{self._holder.pid}/mountinfo").read_text().splitlines()
        return [line.split(" ")[4] for line in lines]

    def path(self, path: str) -> Path:
        """Where a file of its root's is seen from here."""
        return self.root / path.lstrip("/")

    def close(self) -> None:
        """End it; its mounts go with the last process in it."""
        self._stack.close()

    def __enter__(self) -> BareHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self) -> None:
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait()
        for stream in (self._holder.stdout, self._holder.stderr):
            if stream is not None:
                stream.close()
