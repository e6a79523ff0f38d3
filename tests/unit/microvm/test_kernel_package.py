"""``hack/kernel`` with an apt that knows nothing, or what is gone, until it is told to look."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "hack/kernel"
APT = r"""#!/bin/bash
looks=$(cat "$LOOKS" 2>/dev/null || echo 0)
case "$*" in
  depends*) ((looks < KNOWN)) || printf 'linux-image-cloud-amd64\n  Depends: linux-image-9-cloud-amd64\n' ;;
  policy*) printf '  Candidate: 1:9.%s\n' "$looks" ;;
  *update) ((${OFFLINE:-0})) && exit 100; echo $((looks + 1)) >"$LOOKS" ;;
  *download*) ((looks < THERE)) && exit 100; echo x >"linux-image-9-cloud-amd64_1%3a9.${looks}_amd64.deb" ;;
esac
exit 0
"""


@pytest.mark.parametrize(
    ("known", "there", "offline", "code", "brought"),
    [
        (0, 0, 0, 0, ["linux-image-9-cloud-amd64_1%3a9.0_amd64.deb"]),
        (1, 0, 0, 0, ["linux-image-9-cloud-amd64_1%3a9.1_amd64.deb"]),
        (0, 1, 0, 0, ["linux-image-9-cloud-amd64_1%3a9.1_amd64.deb"]),
        (9, 0, 0, 0, []),
        (1, 0, 1, 100, []),
        (0, 9, 0, 100, []),
        (0, 9, 1, 100, []),
    ],
)
def test_what_apt_does_not_know_yet_or_any_more_is_looked_for_once_more(
    tmp_path: Path, known: int, there: int, offline: int, code: int, brought: list[str]
) -> None:
    script, cache = tmp_path / "kernel", tmp_path / "cache"
    text = SCRIPT.read_text().replace("/var/cache/forgeone/kernel", str(cache))
    script.write_text(text.replace("/boot/vmlinuz-", f"{tmp_path}/vmlinuz-"))
    for name in ("apt-get", "apt-cache"):
        (tmp_path / name).write_text(APT)
        (tmp_path / name).chmod(0o755)
    given = {"KNOWN": str(known), "THERE": str(there), "OFFLINE": str(offline), "LOOKS": str(tmp_path / "looks")}
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["bash", script], env={"PATH": path} | given, capture_output=True, check=False)
    assert done.returncode == code
    assert sorted(one.name for one in cache.glob("*")) == brought
    assert (b"there is no linux-image-cloud-amd64" in done.stderr) == (known == 9)
