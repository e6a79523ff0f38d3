"""AppArmor: which profile a container enters, and ForgeOne's default one.

The default is an allow-list of nothing and a deny-list of what a container must not reach on any host: writes to the
kernel's knobs that are not its own, mounts, other processes' traces and signals. Capabilities, seccomp and the file
permissions of namespaces are left to do the rest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from engines.base import Profile, ProfileType
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, InvalidInput
from forgeone_shim.kernel.spawn import run

DEFAULT = "forgeone-default"
INSTALL = "apt-get install -y apparmor"
_FIELD = "linux.security_context.apparmor"
_SECURITY = Path("/sys/kernel/security/apparmor")
_POLICY = Path("/etc/apparmor.d")
_ABI, _TUNABLES, _BASE = "abi/3.0", "tunables/global", "abstractions/base"
_LOAD_SECONDS = 10.0

# Of /proc/sys only what belongs to an IPC namespace (kernel.msg*, kernel.sem, kernel.shm*) may be written; AppArmor has
# no "all but", so that each name is cut off letter by letter.
_RULES = """\
  network,
  capability,
  file,
  umount,

  # From forgeoned, from crun on hosts that confine it, and among themselves.
  signal (receive) peer=unconfined,
  signal (receive) peer=crun,
{daemon}  signal (send, receive) peer={name},
  ptrace (trace, tracedby, read, readby) peer={name},

  deny mount,

  deny @{{PROC}}/* w,
  deny @{{PROC}}/[^0-9s]*/** w,
  deny @{{PROC}}/s[^y]*/** w,
  deny @{{PROC}}/sys[^/]*/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/k[^e]** w,
  deny @{{PROC}}/sys/kernel/[^ms]** w,
  deny @{{PROC}}/sys/kernel/m[^s]** w,
  deny @{{PROC}}/sys/kernel/s[^eh]** w,
  deny @{{PROC}}/sys/kernel/se[^m]** w,
  deny @{{PROC}}/sys/kernel/sh[^m]** w,
  deny @{{PROC}}/{{kcore,kmem,mem,sysrq-trigger}} rwklx,

  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/{{firmware,devices/virtual/powercap,kernel/security}}/** rwklx,
"""


def default_text(daemon: str = "unconfined", has: Callable[[str], bool] = lambda _: False) -> str:
    """The default profile as apparmor_parser(8) reads it.

    :param daemon: the profile forgeoned itself runs in.
    :param has: whether a file is there below the directory of policies; without them the text stands alone.
    """
    top = [f"abi <{_ABI}>,"] if has(_ABI) else []
    top.append(f"include <{_TUNABLES}>" if has(_TUNABLES) else "@{PROC}=/proc/")
    peer = "" if daemon in {"unconfined", "crun"} else f'  signal (receive) peer="{daemon}",\n'
    lines = [*top, "", f"profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{"]
    if has(_BASE):
        lines.append(f"  include <{_BASE}>")
    return "\n".join(lines) + "\n" + _RULES.format(name=DEFAULT, daemon=peer) + "}\n"


class AppArmor:
    """The host's AppArmor, if ``enabled``; ``parser`` is the path of apparmor_parser, empty where it is of no use."""

    def __init__(self, *, enabled: bool, parser: str, security: Path = _SECURITY, policy: Path = _POLICY) -> None:
        self._enabled, self._parser = enabled, parser
        self._security, self._policy = security, policy
        self._lock = threading.Lock()

    def choose(self, asked: Profile | None, *, privileged: bool) -> str:
        """The profile to enter, empty for none.

        Where nothing is asked for it is the default one as soon as the host can have it, but none for a privileged
        container. What is asked for is had or refused.

        :raises FailedPrecondition: the host has no AppArmor, or not this profile.
        """
        kind = ProfileType.RUNTIME_DEFAULT if asked is None else asked.type
        if kind is ProfileType.UNCONFINED:
            return ""
        if asked is not None and kind is ProfileType.LOCALHOST:
            return self._named(asked.localhost_ref.removeprefix("localhost/"))
        if not self._enabled:
            if asked is not None:
                raise FailedPrecondition("the default AppArmor profile was asked for, but this host has no AppArmor")
            return ""
        if privileged:
            return ""
        try:
            self._have_default()
        except ForgeError as error:
            if asked is None and not self._parser:
                return ""
            what = f"the default AppArmor profile cannot be had: {error.what}"
            raise FailedPrecondition(what, fix=error.fix) from error
        return DEFAULT

    def _named(self, name: str) -> str:
        if not name or any(character <= " " for character in name):
            raise InvalidInput(f"{_FIELD}.localhost_ref", f"{name!r} is no profile's name")
        if not self._enabled:
            raise FailedPrecondition(f"AppArmor profile {name!r} was asked for, but this host has no AppArmor")
        if name not in self.loaded():
            raise FailedPrecondition(
                f"AppArmor profile {name!r} is not loaded on this host", fix="apparmor_parser --replace FILE"
            )
        return name

    def loaded(self) -> frozenset[str]:
        """The names of the profiles the kernel has; it lists each as ``name (mode)``."""
        try:
            text = (self._security / "profiles").read_text()
        except OSError as error:
            raise FailedPrecondition(f"the loaded AppArmor profiles cannot be read: {error}") from error
        return frozenset(line.rpartition(" (")[0] for line in text.splitlines())

    def _have_default(self) -> None:
        # It may have been removed since (aa-remove-unknown(8) takes all that is in no file).
        if DEFAULT in self.loaded():
            return
        with self._lock:
            if DEFAULT not in self.loaded():
                self.load_default(Deadline.after(_LOAD_SECONDS))

    def load_default(self, deadline: Deadline) -> None:
        """Give the kernel the default profile, in the place of one from an earlier forgeoned. Executes apparmor_parser.

        :raises FailedPrecondition: there is none.
        :raises InternalError: it failed.
        """
        if not self._parser:
            raise FailedPrecondition(
                "apparmor_parser is not installed, or not to be used without CAP_MAC_ADMIN", fix=INSTALL
            )
        text = default_text(_own_profile(), lambda name: (self._policy / name).is_file())
        fd = os.memfd_create("apparmor", os.MFD_CLOEXEC)
        try:
            os.write(fd, text.encode())
            file = f"/proc/{os.getpid()}/fd/{fd}"
            done = run(self._parser, ["apparmor_parser", "--replace", "--skip-cache", file], deadline)
        finally:
            os.close(fd)
        if done.code:
            raise InternalError(f"apparmor_parser refuses the default profile: {done.text.strip()[-500:]}")


def _own_profile() -> str:
    """The profile this process runs in, without its mode."""
    for path in ("/proc/self/attr/apparmor/current", "/proc/self/attr/current"):
        try:
            name = Path(path).read_text().rstrip("\0\n").partition(" (")[0]
        except OSError:
            continue
        return name if name and not set(name) & set('"\n\\') else "unconfined"
    return "unconfined"
