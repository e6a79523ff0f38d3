"""``python -m hack.reference``: write the generated parts of the pages; ``--check`` only says which are out of date."""

from __future__ import annotations

import sys

from hack.reference.pages import ROOT, stale, write
from hack.reference.texts import Undocumented


def main(argv: list[str]) -> int:
    """The exit code: 1 where ``--check`` found something, or a text is missing."""
    try:
        if argv == ["--check"]:
            found = stale(ROOT)
            for page in found:
                sys.stderr.write(f"{page} is not what the code says: run `make reference`\n")
            return 1 if found else 0
        for page in write(ROOT):
            sys.stdout.write(f"written: {page}\n")
    except Undocumented as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
