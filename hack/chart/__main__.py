"""``python -m hack.chart``: write what of the chart is generated; ``--check`` only says what is out of date."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from hack.chart.generated import files

CHART: Final = Path(__file__).parents[2] / "charts/forgeone"


def main(argv: list[str]) -> int:
    """The exit code: 1 where ``--check`` found something."""
    code = 0
    for name, text in files(CHART).items():
        path = CHART / name
        if path.is_file() and path.read_text() == text:
            continue
        if argv == ["--check"]:
            sys.stderr.write(f"{path} is not what the code says: run `python -m hack.chart`\n")
            code = 1
        else:
            path.write_text(text)
            sys.stdout.write(f"written: {path}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
