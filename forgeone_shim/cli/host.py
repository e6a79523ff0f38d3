"""What a host must have to run pods. Each check tries the thing itself; none goes by a version number."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from engines.base import Engine, Problem
from forgeone_shim.attestation.keys import read_trusted
from forgeone_shim.config import handlers as handler_files
from forgeone_shim.config.model import Config, SignaturesConfig
from forgeone_shim.devices import blockio
from forgeone_shim.devices.cdi import Cdi
from forgeone_shim.dna.behaviour import recorder
from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.kernel import cgroups, selinux, syscalls
from forgeone_shim.kernel.netlink import Netlink, NetlinkError
from forgeone_shim.network import links
from forgeone_shim.registry.verifiers import Verifiers
from forgeone_shim.registry.vetting import Vetting
from forgeone_shim.runtime.handlers import Handlers

ENGINE_GROUP = "forgeone.engines"
KNOWN_ENGINES = ("native", "wasm", "microvm")

HUGETLB = "/sys/fs/cgroup/hugetlb"
HUGETLB_FIX = f"mkdir -p {HUGETLB} && mount -t cgroup -o hugetlb none {HUGETLB}"

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_FSOPEN_CLOEXEC = 1
_NEEDED_CONTROLLERS, _WANTED_CONTROLLERS = ("cpu", "memory", "pids"), ("cpuset",)


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and what ``--fix`` may do about it by itself (``None``: only a person can)."""

    problem: Problem
    mend: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; nothing found is good. ``absent``: it is not part of this installation."""

    name: str
    findings: tuple[Finding, ...] = ()
    absent: bool = False

    @property
    def fatal(self) -> bool:
        """Whether pods cannot run."""
        return any(finding.problem.fatal for finding in self.findings)


def look(config: Config) -> list[Check]:
    """Every check of the host, then one for each engine, named ``engine <name>``."""
    if os.geteuid() != 0:
        why = "mounts, namespaces and cgroups are root's to make, and the checks make some"
        return [Check("root", (Finding(Problem("not running as root", why, "sudo forge doctor")),))]
    host = [
        Check("overlayfs", _overlay()),
        Check("mount API", _mount_api()),
        Check("storage", _storage(Path(config.root))),
        Check("network", _network()),
        Check("nftables", _nftables()),
        Check("cgroups", _cgroups(config)),
        Check("devices", _devices(config)),
        Check("classes", _classes(config.resources.blockio_config_file)),
        Check("labels", _labels(config.selinux.mode)),
        Check("package keys", _package_keys(config.packages.trusted_keys)),
        Check("signatures", _signatures(config.signatures)),
        Check("handlers", _handlers(config)),
        Check("behaviour", _behaviour(config)),
    ]
    known = {finding.problem.fix for check in host for finding in check.findings}
    return host + _engines(config, known)


def _overlay() -> tuple[Finding, ...]:
    kinds = Path("/proc/filesystems").read_text().split()
    if "overlay" in kinds:
        return ()
    return (_module("overlay", "the kernel offers no overlayfs", "a container's root is an overlay of its layers"),)


def _mount_api() -> tuple[Finding, ...]:
    try:
        os.close(syscalls.syscall(syscalls.FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC))
    except OSError as error:
        what = f"fsopen(2): {error.strerror}"
        return (Finding(Problem(what, "mount(2) is used: fewer layers, more system calls", fatal=False)),)
    return ()


def _storage(root: Path) -> tuple[Finding, ...]:
    """The kernel refuses an overlay's writable part on an overlay, which a container's own root often is."""
    kind = filesystem_of(root, Path("/proc/self/mountinfo").read_text())
    if kind != "overlay":
        return ()
    why = "an overlay cannot keep its writable layer on another overlay"
    return (Finding(Problem(f"{root} is on overlayfs", why, "give forgeoned a --root on a disk or tmpfs of its own")),)


def filesystem_of(path: Path, mountinfo: str) -> str:
    """The filesystem type ``path`` is on, by ``/proc/self/mountinfo``'s text."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].encode().decode("unicode_escape"))
        # Of two mounts on one point the later hides the earlier.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ", 1)[0]
    return kind


def _network() -> tuple[Finding, ...]:
    """Makes a bridge and a veth pair in a network namespace that ends with its thread."""

    def attempt() -> tuple[str, str]:
        syscalls.syscall(syscalls.number("unshare"), _CLONE_NEWNET)
        with Netlink() as netlink, Path("/proc/thread-self/ns/net").open("rb") as netns:
            try:
                netlink.ask(links.add_bridge("probe0", "02:00:00:00:00:01", 1500))
            except NetlinkError as error:
                return "bridge", str(error)
            index = links.parse_links(netlink.ask(links.get_link("probe0")))[0].index
            veth = links.add_veth("probe1", index, 1500, netns.fileno(), peer="probe2", peer_mac="02:00:00:00:00:02")
            try:
                netlink.ask(veth)
            except NetlinkError as error:
                return "veth", str(error)
        return "", ""

    try:
        module, why = _in_thread(attempt)
    except OSError as error:
        return (Finding(Problem(f"no network namespace can be made: {error.strerror}", "every pod has one")),)
    if not module:
        return ()
    return (_module(module, f"the kernel made no {module} link", f"every pod's interface needs it: {why}"),)


def _nftables() -> tuple[Finding, ...]:
    """Makes a table in a network namespace that ends with its thread."""
    program = shutil.which("nft")
    if program is None:
        why = "masquerading and host ports are nftables rules"
        return (Finding(Problem("nft is not installed", why, "apt-get install -y nftables")),)

    def attempt() -> str:
        syscalls.syscall(syscalls.number("unshare"), _CLONE_NEWNET)
        # The child is started by this thread, and so in its namespace.
        argv = [program, "add table inet probe; add chain inet probe x { type nat hook postrouting priority 100; }"]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, close_fds=False)
        return done.stderr.strip() if done.returncode else ""

    try:
        refused = _in_thread(attempt)
    except OSError as error:
        refused = str(error)
    if not refused:
        return ()
    return (_module("nf_tables", "the kernel takes no nftables NAT rules", refused),)


def _cgroups(config: Config) -> tuple[Finding, ...]:
    try:
        host = cgroups.detect(config.native.cgroup_driver)
    except (OSError, ForgeError) as error:
        return (Finding(Problem("control groups cannot be read", str(error))),)
    if not host.hierarchies:
        why = "limits and usage of containers need them"
        return (
            Finding(Problem(f"no control groups below {cgroups.ROOT}", why, f"mount -t cgroup2 none {cgroups.ROOT}")),
        )
    found = [
        Finding(
            Problem(
                f"no {name} controller",
                "limits and usage of containers need it",
                "add cgroup_enable=memory to the kernel's command line and boot" if name == "memory" else "",
                fatal=name in _NEEDED_CONTROLLERS,
            )
        )
        for name in (*_NEEDED_CONTROLLERS, *_WANTED_CONTROLLERS)
        if not host.has(name)
    ]
    if hugetlb_trap(host, Path("/proc/cgroups").read_text()):
        why = "on a v1 or hybrid layout crun enters every enabled v1 controller, and fails on one that is not mounted"
        found.append(Finding(Problem("the hugetlb controller is not mounted", why, HUGETLB_FIX), _mount_hugetlb))
    return tuple(found)


def _behaviour(config: Config) -> tuple[Finding, ...]:
    with contextlib.suppress(OSError, ForgeError):
        if not cgroups.detect(config.native.cgroup_driver).unified:
            what, why = "no unified control group hierarchy", "what containers do is counted by its groups"
            where = f"{cgroups.ROOT}/unified"
            fix = f"mkdir {where}; mount -t cgroup2 none {where}"
            return (Finding(Problem(what, why, fix, fatal=False)),)
    reason = recorder.problem()
    if not reason:
        return ()
    why = "containers whose contract has them watched cannot start"
    return (Finding(Problem(f"system calls cannot be counted: {reason}", why, fatal=False)),)


def _devices(config: Config) -> tuple[Finding, ...]:
    why = "containers that ask for what it describes cannot be created"
    unusable = Cdi(config.cdi.spec_dirs).unusable()
    return tuple(Finding(Problem(f"CDI file {what}", why, "correct or remove it", fatal=False)) for what in unusable)


def _classes(file: str) -> tuple[Finding, ...]:
    """Whether the file of block I/O classes can be used."""
    try:
        if file:
            blockio.parse(file, Path(file).read_bytes())
    except (OSError, ForgeError) as error:
        why = "containers that ask for a class of block I/O cannot be created"
        return (Finding(Problem(f"block I/O classes: {error}", why, "correct the file", fatal=False)),)
    return ()


def _package_keys(directory: str) -> tuple[Finding, ...]:
    """Whether the keys that packages are to be signed by can be used."""
    try:
        read_trusted(Path(directory))
    except ForgeError as error:
        why = "no package is taken by its signature"
        return (Finding(Problem(f"package keys: {error.what}", why, error.fix or "correct or remove it", fatal=False)),)
    return ()


def _signatures(config: SignaturesConfig) -> tuple[Finding, ...]:
    """Whether what images have to be signed by can be read, and who has to be asked about them be started."""
    try:
        Vetting.open(config)
    except ForgeError as error:
        fix = error.fix or "correct or remove it"
        return (Finding(Problem(f"signatures: {error.what}", "forgeoned does not start with it", fix)),)
    if config.verifiers_dir and (fault := Verifiers(Path(config.verifiers_dir), config.verifier_timeout).fault()):
        what = f"verifiers of {config.verifiers_dir}: {fault}"
        return (Finding(Problem(what, "every image is refused", "put programs there that only root can change")),)
    return ()


def _labels(mode: str, filesystem: Path = selinux.FILESYSTEM, etc: Path = selinux.CONFIGURATION) -> tuple[Finding, ...]:
    """Whether a host with SELinux can label containers."""
    if mode == "off" or not (filesystem / "enforce").exists() or selinux.detect(filesystem, etc) is not None:
        return ()
    why = "containers are not confined by it; a policy with lxc_contexts is needed, such as container-selinux brings"
    return (Finding(Problem("the SELinux policy has no labels for containers", why, fatal=False)),)


def hugetlb_trap(host: cgroups.CgroupHost, proc_cgroups: str) -> bool:
    """Whether this is a layout on which crun does not start for want of the v1 hugetlb hierarchy."""
    rows = (line.split() for line in proc_cgroups.splitlines() if not line.startswith("#"))
    enabled = {row[0] for row in rows if len(row) == 4 and row[3] == "1"}
    return host.mode is not cgroups.Mode.V2 and "hugetlb" in enabled and "hugetlb" not in host.v1


def _mount_hugetlb() -> None:
    Path(HUGETLB).mkdir(exist_ok=True)
    syscalls.syscall(syscalls.number("mount"), b"none", HUGETLB.encode(), b"cgroup", 0, b"hugetlb", path=HUGETLB)


def _handlers(config: Config) -> tuple[Finding, ...]:
    """Files that forgeoned would not start with."""
    try:
        files = handler_files.read(Path(config.handlers_dir))
        Handlers(
            {point.name: point.load()(asdict(config)) for point in entry_points(group=ENGINE_GROUP)},
            files,
            config.scheduler.order,
        )
    except InvalidInput as error:
        if not error.field.startswith("native."):
            return (Finding(Problem(f"a runtime handler cannot be used: {error}", "forgeoned does not start with it")),)
    except (ImportError, AttributeError, ForgeError, OSError):
        pass
    # What is wrong with an engine is told by its own check.
    return ()


def _engines(config: Config, known: set[str]) -> list[Check]:
    installed = {point.name: point for point in entry_points(group=ENGINE_GROUP)}
    checks = []
    for name in dict.fromkeys((*KNOWN_ENGINES, *sorted(installed))):
        if name in installed:
            problems = [problem for problem in _ask(installed[name], config) if problem.fix not in known - {""}]
        else:
            why = f"pods of the handler forgeone-{name} cannot run"
            problems = [Problem(f"the {name} engine is not installed", why, fatal=name == "native")]
        findings = tuple(Finding(problem) for problem in problems)
        checks.append(Check(f"engine {name}", findings, absent=name not in installed))
    return checks


def _ask(point: EntryPoint, config: Config) -> list[Problem]:
    try:
        engine: Engine = point.load()(asdict(config))
        return engine.problems()
    except (ImportError, AttributeError, ForgeError, OSError) as error:
        return [Problem(f"the {point.name} engine does not load", f"{type(error).__name__}: {error}")]


def _module(name: str, what: str, why: str) -> Finding:
    """A kernel feature that may be a module not loaded yet."""
    return Finding(Problem(what, why, f"modprobe {name}"), lambda: _modprobe(name))


def _modprobe(name: str) -> None:
    program = shutil.which("modprobe")
    if program is None:
        raise OSError(errno.ENOENT, "modprobe is not installed (apt-get install -y kmod)")
    done = subprocess.run([program, name], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(errno.EIO, done.stderr.strip())


def _in_thread(function: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()
