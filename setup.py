"""Only what pyproject.toml cannot say: the interface's Python side is generated whenever modules are collected."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cri.api.build import generate


class BuildPy(build_py):
    """``build_py`` that runs protoc first; editable installs pass here too."""

    def run(self) -> None:
        """Generate into the source tree, then collect it."""
        generate()
        super().run()


setup(cmdclass={"build_py": BuildPy})
