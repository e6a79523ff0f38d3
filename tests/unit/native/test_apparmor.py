"""Which AppArmor profile a container enters. The kernel's files and the parser are doubles: few hosts have both."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from engines.base import Profile, ProfileType
from engines.native import apparmor
from engines.native.apparmor import DEFAULT, AppArmor, default_text
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InternalError, InvalidInput

UNCONFINED = Profile(ProfileType.UNCONFINED)
RUNTIME_DEFAULT = Profile(ProfileType.RUNTIME_DEFAULT)


def localhost(name: str) -> Profile:
    return Profile(ProfileType.LOCALHOST, name)


class Kernel:
    """A directory that looks as securityfs does, and a parser that loads what it is given into it."""

    def __init__(self, directory: Path, *loaded: str) -> None:
        self.directory = directory
        self.profiles = directory / "profiles"
        self.profiles.write_text("".join(f"{name} (enforce)\n" for name in loaded))
        self.calls = directory / "calls"
        self.parser = directory / "parser"
        self.parser.write_text(
            f'#!/bin/sh\necho "$1 $2" >> {self.calls}\ncat "$3" > {directory}/text\n'
            f"sed -n 's/^profile \\([^ ]*\\) .*/\\1 (enforce)/p' \"$3\" >> {self.profiles}\n"
        )
        self.parser.chmod(0o755)

    def host(self, *, enabled: bool = True, parser: bool = True) -> AppArmor:
        path = str(self.parser) if parser else ""
        return AppArmor(enabled=enabled, parser=path, security=self.directory, policy=self.directory / "no")

    @property
    def loads(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path, "mine", "/usr/bin/with space", "odd (name)")


def test_the_default_is_loaded_once_and_again_when_it_was_taken_away(kernel: Kernel) -> None:
    host = kernel.host()
    assert [host.choose(asked, privileged=False) for asked in (None, RUNTIME_DEFAULT)] == [DEFAULT, DEFAULT]
    assert kernel.loads == 1
    kernel.profiles.write_text("")
    assert host.choose(None, privileged=False) == DEFAULT
    assert kernel.loads == 2
    assert (kernel.directory / "text").read_text() == default_text(apparmor._own_profile())
    assert "--replace" in kernel.calls.read_text()


@pytest.mark.parametrize(
    ("asked", "privileged", "entered"),
    [
        (None, False, DEFAULT),
        (RUNTIME_DEFAULT, False, DEFAULT),
        (UNCONFINED, False, ""),
        (localhost("mine"), False, "mine"),
        (localhost("localhost/mine"), False, "mine"),
        (localhost("odd (name)"), False, None),
        (None, True, ""),
        (RUNTIME_DEFAULT, True, ""),
        (UNCONFINED, True, ""),
        (localhost("mine"), True, "mine"),
    ],
)
def test_what_is_entered(kernel: Kernel, asked: Profile | None, privileged: bool, entered: str | None) -> None:
    if entered is None:
        with pytest.raises(InvalidInput, match="no profile's name"):
            kernel.host().choose(asked, privileged=privileged)
    else:
        assert kernel.host().choose(asked, privileged=privileged) == entered


@pytest.mark.parametrize("name", ["min", "mine2", "mine (enforce)x", "MINE"])
def test_a_profile_the_kernel_does_not_have_is_refused(kernel: Kernel, name: str) -> None:
    with pytest.raises((FailedPrecondition, InvalidInput)):
        kernel.host().choose(localhost(name), privileged=False)
    assert not kernel.loads


@pytest.mark.parametrize("name", ["", "a b", "a\n", "\0"])
def test_what_is_no_name_is_refused(kernel: Kernel, name: str) -> None:
    with pytest.raises(InvalidInput):
        kernel.host().choose(localhost(name), privileged=False)


@pytest.mark.parametrize("asked", [RUNTIME_DEFAULT, localhost("mine")])
def test_what_is_asked_for_cannot_be_had_without_apparmor(kernel: Kernel, asked: Profile) -> None:
    with pytest.raises(FailedPrecondition, match="no AppArmor"):
        kernel.host(enabled=False).choose(asked, privileged=False)


@pytest.mark.parametrize("asked", [None, UNCONFINED])
def test_without_apparmor_nothing_is_needed_where_nothing_is_asked_for(kernel: Kernel, asked: Profile | None) -> None:
    assert kernel.host(enabled=False).choose(asked, privileged=False) == ""


def test_without_the_parser_only_what_asks_for_the_default_is_refused(kernel: Kernel) -> None:
    host = kernel.host(parser=False)
    assert host.choose(None, privileged=False) == ""
    with pytest.raises(FailedPrecondition, match="apparmor_parser is not installed") as raised:
        host.choose(RUNTIME_DEFAULT, privileged=False)
    assert raised.value.fix == apparmor.INSTALL
    assert host.choose(localhost("mine"), privileged=False) == "mine"


def test_a_parser_that_fails_refuses_every_container_that_would_have_the_default(kernel: Kernel) -> None:
    kernel.parser.write_text("#!/bin/sh\necho syntax error >&2; exit 1\n")
    with pytest.raises(FailedPrecondition, match="syntax error"):
        kernel.host().choose(None, privileged=False)
    with pytest.raises(InternalError, match="syntax error"):
        kernel.host().load_default(Deadline.after(5))


def test_the_default_lets_forgeoned_send_signals_whatever_it_runs_in() -> None:
    assert 'signal (receive) peer="/usr/sbin/forgeoned",' in default_text("/usr/sbin/forgeoned")
    assert default_text().count("signal (receive)") == 2


@pytest.mark.parametrize("beside", [(), ("abi/3.0", "tunables/global", "abstractions/base")])
def test_the_parser_takes_the_default(beside: tuple[str, ...], tmp_path: Path) -> None:
    parser = shutil.which("apparmor_parser")
    if parser is None or not all(Path("/etc/apparmor.d", name).exists() for name in ("abi/3.0", *beside)):
        pytest.skip("apparmor_parser and its policies are not installed")
    file = tmp_path / "profile"
    file.write_text(default_text(has=lambda name: name in beside))
    argv = [parser, "-QK", "-M", "/etc/apparmor.d/abi/3.0", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
