from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ("requirements/runtime.lock", "requirements/dev.lock")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pinned_dependency_has_hashes(lock: str) -> None:
    entries = re.split(r"\n(?=\S)", re.sub(r"^ *#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE).strip())
    assert len(entries) > 10
    assert [entry.split()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_name_no_registry(lock: str) -> None:
    assert re.findall(r"^--.*|https?://\S+|file:\S+", (ROOT / lock).read_text(), re.MULTILINE) == []


def test_the_runtime_lock_is_part_of_the_other() -> None:
    runtime, dev = (set(re.findall(r"^\S+==\S+", (ROOT / lock).read_text(), re.MULTILINE)) for lock in LOCKS)
    assert runtime <= dev


def test_the_lock_covers_every_dependency_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    wanted = {name.lower() for name in re.findall(r'^  "([A-Za-z0-9-]+)(?:>=[^"]+)?",$', project, re.MULTILINE)}
    pinned = set(re.findall(r"^(\S+)==", (ROOT / LOCKS[1]).read_text(), re.MULTILINE))
    assert wanted - pinned == set()


def test_generated_files_are_not_committed() -> None:
    assert [path for path in tracked() if re.search(r"_pb2(_grpc)?\.pyi?$", path.name)] == []


@pytest.mark.parametrize("script", ["hack/packages", "hack/lock", ".ci/run"])
def test_scripts_are_valid_and_executable(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script], cwd=ROOT, check=False).returncode == 0


def test_make_alone_lists_every_documented_target() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, check=True, capture_output=True, text=True)
    for target in ("setup", "run", "test", "fmt", "lint", "types", "imports", "e2e", "unit", "bench", "clean"):
        assert f"make {target} " in done.stdout
