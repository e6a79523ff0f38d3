"""What config.toml is to hold, and what of an administrator's is kept."""

from __future__ import annotations

import pytest

from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput
from forgeone_shim.node.configuration import wanted

UPSTREAM = "/run/containerd/containerd.sock"
SECTION = f'[upstream]\nsocket = "{UPSTREAM}"\n'.encode()
LOG = b'[log]\nlevel = "debug"'


@pytest.mark.parametrize(
    ("existing", "written", "given", "kept", "upstream", "expected"),
    [
        (None, None, None, b"", "", (None, True)),
        (None, None, None, b"", UPSTREAM, (SECTION, True)),
        (None, None, LOG, b"", UPSTREAM, (LOG + b"\n" + SECTION, True)),
        # What was given before is given still, until something else is.
        (SECTION, SECTION, None, LOG, UPSTREAM, (LOG + b"\n" + SECTION, True)),
        (LOG, LOG, b"", LOG, "", (None, True)),
        # An administrator's, which says what it has to.
        (LOG, None, None, b"", "", (LOG, False)),
        (LOG + b"\n" + SECTION, SECTION, None, b"", UPSTREAM, (LOG + b"\n" + SECTION, False)),
        (LOG, None, LOG + b"\n# x\n", b"", "", (LOG, False)),
        (LOG, None, b"# nothing\n", b"", "", (LOG, False)),
        # Nothing but comments is nobody's word.
        (b"# example\n", None, None, b"", UPSTREAM, (b"# example\n" + SECTION, True)),
        (b"# example\n", None, None, b"", "", (b"# example\n", False)),
        # In a section that is there.
        (
            None,
            None,
            b'[upstream]\ndefault_runtime = "forgeone"\n',
            b"",
            UPSTREAM,
            (f'[upstream]\nsocket = "{UPSTREAM}"\ndefault_runtime = "forgeone"\n'.encode(), True),
        ),
        (None, None, SECTION, b"", UPSTREAM, (SECTION, True)),
    ],
)
def test_what_the_file_holds(
    existing: bytes | None,
    written: bytes | None,
    given: bytes | None,
    kept: bytes,
    upstream: str,
    expected: tuple[bytes | None, bool],
) -> None:
    found = wanted(existing, written, given, kept, upstream)
    assert (found.content, found.ours) == expected
    assert found.config.upstream.socket == upstream


@pytest.mark.parametrize(
    ("existing", "given", "upstream", "error", "match"),
    [
        (LOG, None, UPSTREAM, FailedPrecondition, f'set it to "{UPSTREAM}" there'),
        (SECTION, None, "", FailedPrecondition, r'set it to "" there'),
        (LOG, b'[log]\nlevel = "info"\n', "", FailedPrecondition, "differs from --config"),
        (None, SECTION, "/run/crio/crio.sock", FailedPrecondition, "leave it out"),
        (
            None,
            b'upstream = {default_runtime = "forgeone"}\n',
            UPSTREAM,
            FailedPrecondition,
            "not written as a section",
        ),
        (None, b'[log]\nlevel = "loud"\n', "", InvalidInput, "log.level"),
        (None, b"no\n", "", InvalidInput, "not TOML"),
        (None, b"lag = 1\n", "", InvalidInput, "lag"),
        (None, b'socket = "/run/x.sock"\n', "", InvalidInput, "is not where forge node looks"),
    ],
)
def test_what_cannot_be_is_refused(
    existing: bytes | None, given: bytes | None, upstream: str, error: type[ForgeError], match: str
) -> None:
    with pytest.raises(error, match=match):
        wanted(existing, None, given, b"", upstream)
