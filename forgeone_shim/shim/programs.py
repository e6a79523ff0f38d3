"""Small programs of ForgeOne's own, started as quickly as Python can be."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Program:
    """Runs ``main`` of ``module``. Of what is installed it sees the folders of ``packages`` alone."""

    module: str
    packages: tuple[str, ...]
    version: str = ""

    def command(self, *arguments: str, room: int = 0) -> list[str]:
        """The command line, the program first; at least ``room`` bytes long, for titles that are written over it."""
        folders: dict[str, None] = {}
        for package in self.packages:
            spec = find_spec(package)
            if spec is not None and spec.origin is not None:
                folders[str(Path(spec.origin).resolve().parent.parent)] = None
        boot = f"import sys; sys.path[:0] = {list(folders)!r}; from {self.module} import main; main()"
        # -S leaves out site-packages and the time to scan it.
        return [sys.executable, "-I", "-S", "-c", boot.ljust(room), *arguments]
