"""What the guest is made of: Debian's packages, a .venv of the lock file's wheels, and a checkout.

Below the cache directory, each named by a hash of what it is made from and made once:

==================  ============================================================
``debian-HASH``     ``tree``, ``root.img``, ``vmlinuz``, ``initrd``
``venv-HASH``       the .venv that lies at :data:`PROJECT` in the guest
``packages``        what debootstrap has downloaded
==================  ============================================================
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hack.guest import sources

REPOSITORY = Path(__file__).resolve().parents[2]
#: Where the checkout is in the guest; the unit in hack/systemd expects it there, too.
PROJECT = "/opt/forgeone"
#: What the guest is told to do, beside the checkout.
ORDERS = "/opt/orders.json"
SUITE, PYTHON, GLIBC = "bookworm", "3.11", (2, 36)
PACKAGES = (
    *("linux-image-cloud-amd64", "systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "apparmor"),
    *("apparmor-utils", "crun", "conmon", "catatonit", "criu", "jq", "nftables", "iptables", "iproute2"),
    *("iputils-ping", "containernetworking-plugins", "docker-registry", "busybox-static", "ca-certificates"),
    *("python3", "python3-venv", "make", "git"),
)
_ROOT_BYTES, _PROJECT_BYTES = 4 << 30, 2 << 30
_FSTAB = """\
/dev/vda / ext4 defaults 0 1
/dev/vdb /opt ext4 defaults 0 2
"""
_UNIT = f"""\
[Unit]
Description=ForgeOne's end-to-end tests
ConditionPathExists={ORDERS}
RequiresMountsFor=/opt
Wants=dev-virtio\\x2dports-report.device dev-virtio\\x2dports-result.device
After=multi-user.target dev-virtio\\x2dports-report.device dev-virtio\\x2dports-result.device
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
WorkingDirectory={PROJECT}
ExecStart={PROJECT}/.venv/bin/python -m hack.guest.inside {ORDERS}
TimeoutStartSec=infinity
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576

[Install]
WantedBy=default.target
"""
_LOGIN = """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I linux
"""
_FILES: Mapping[str, str] = {
    "etc/fstab": _FSTAB,
    "etc/hostname": "guest\n",
    "etc/hosts": "127.0.0.1 localhost guest\n::1 localhost\n",
    "etc/systemd/system/e2e.service": _UNIT,
    "etc/systemd/system/serial-getty@ttyS0.service.d/login.conf": _LOGIN,
    # What comes to the console while tests run would be mixed with a login's.
    "etc/sysctl.d/console.conf": "kernel.printk = 3 4 1 3\n",
}


@dataclass(frozen=True, slots=True)
class Base:
    """A Debian that boots."""

    tree: Path
    disk: Path
    kernel: Path
    initrd: Path


def cache() -> Path:
    """``$FORGEONE_GUEST_DIR``, or a directory of the user's cache; outside of any checkout."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forgeone" / "guest"
    return Path(os.environ.get("FORGEONE_GUEST_DIR") or default).absolute()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One builder at a time."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def base(directory: Path) -> Base:
    """Debian's packages as a disk, from the mirror that this host's apt uses."""
    made = directory / f"debian-{_hash(SUITE, *PACKAGES, repr(sorted(_FILES.items())), str(_ROOT_BYTES))}"
    found = Base(made / "tree", made / "root.img", made / "vmlinuz", made / "initrd")
    if made.is_dir():
        return found
    with _making(made) as new:
        _say(f"making a Debian {SUITE} in {made}")
        packages = directory / "packages"
        packages.mkdir(exist_ok=True)
        _debootstrap(new / "tree", packages)
        _configure(new / "tree")
        for name in ("vmlinuz", "initrd"):
            [file] = (new / "tree" / "boot").glob(f"{name}*")
            shutil.copyfile(file, new / name)
        _disk(new / "tree", new / "root.img", _ROOT_BYTES)
    return found


def venv(directory: Path, debian: Base) -> Path:
    """The .venv of the lock file for the guest's Python, with this project in it as an editable install."""
    texts = [(REPOSITORY / name).read_text() for name in ("requirements/dev.lock", "pyproject.toml", "setup.py")]
    made = directory / f"venv-{_hash(debian.tree.parent.name, *texts)}"
    if made.is_dir():
        return made / "venv"
    with _making(made) as new, tempfile.TemporaryDirectory(dir=directory, prefix="wheels-") as wheels:
        _say(f"making a .venv in {made}")
        _download(Path(wheels))
        inside = debian.tree / PROJECT[1:]
        shutil.rmtree(inside, ignore_errors=True)
        _checkout(inside)
        shutil.copytree(wheels, inside / "wheels")
        pip = (f"{PROJECT}/.venv/bin/pip", "--disable-pip-version-check", "--quiet", "install", "--no-index")
        lock = f"{PROJECT}/requirements/dev.lock"
        chroot = ("env", "--ignore-environment", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "chroot", str(debian.tree))
        _run(*chroot, "python3", "-m", "venv", f"{PROJECT}/.venv")
        _run(*chroot, *pip, f"--find-links={PROJECT}/wheels", "--require-hashes", "--requirement", lock)
        _run(*chroot, *pip, "--no-deps", "--no-build-isolation", "--editable", PROJECT)
        (inside / ".venv").rename(new / "venv")
        shutil.rmtree(inside)
    return made / "venv"


def project_disk(path: Path, environment: Path, orders: str) -> None:
    """The checkout as it is on the host now, uncommitted changes too, and what the guest shall do (``""``: nothing)."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="project-") as directory:
        stage = Path(directory)
        checkout = stage / Path(PROJECT).name
        _checkout(checkout)
        _run("cp", "--archive", str(environment), str(checkout / ".venv"))
        if orders:
            (stage / Path(ORDERS).name).write_text(orders)
        _disk(stage, path, _PROJECT_BYTES)


def _debootstrap(tree: Path, packages: Path) -> None:
    found = sources.mirror(SUITE)
    include = f"--include={','.join(PACKAGES)}"
    words = ["debootstrap", "--variant=minbase", "--components=main", f"--cache-dir={packages}", include]
    if found is not None and found.keyring:
        words.append(f"--keyring={found.keyring}")
    _run(*words, SUITE, str(tree), *([found.url] if found is not None else []))


def _configure(tree: Path) -> None:
    for name, text in _FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    wanted = tree / "etc/systemd/system/default.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "e2e.service").symlink_to("/etc/systemd/system/e2e.service")
    # Each boot is a first one; what keeps Debian up to date has no business here.
    for name in ("apt-daily.timer", "apt-daily-upgrade.timer", "docker-registry.service", "e2scrub_reap.service"):
        (tree / "etc/systemd/system" / name).symlink_to("/dev/null")
    shutil.rmtree(tree / "var/cache/apt", ignore_errors=True)


def _download(wheels: Path) -> None:
    """For the guest's Python, whichever runs here."""
    platforms = [f"manylinux_{GLIBC[0]}_{minor}_x86_64" for minor in range(5, GLIBC[1] + 1)]
    platforms += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", "linux_x86_64"]
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    words += ["--require-hashes", "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"]
    words += [f"--platform={platform}" for platform in platforms]
    _run(*words, f"--dest={wheels}", "--requirement", str(REPOSITORY / "requirements/dev.lock"))


def _checkout(target: Path) -> None:
    """The files git knows or would add, and the stubs, which it is told to ignore."""
    command = ("git", "-C", str(REPOSITORY), "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard")
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    stubs = (path for room in ("cri/api", "forgeone_shim/rpc") for path in (REPOSITORY / room).glob("*_pb2*.py*"))
    for name in dict.fromkeys([*filter(None, listed), *(str(path.relative_to(REPOSITORY)) for path in stubs)]):
        source = REPOSITORY / name
        # Listed until its removal is committed.
        if source.is_file() or source.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def _disk(tree: Path, path: Path, size: int) -> None:
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "root_owner=0:0", "-d", str(tree), str(path), str(size >> 10))


@contextmanager
def _making(made: Path) -> Iterator[Path]:
    """A directory beside ``made`` that takes its name when all has gone well."""
    new = made.with_name(made.name + ".new")
    _remove(new)
    new.mkdir(parents=True)
    try:
        yield new
        new.rename(made)
    finally:
        _remove(new)


def _remove(tree: Path) -> None:
    """A debootstrap that was ended leaves its mounts behind; they must not be emptied."""
    mounted = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((point for point in mounted if point.startswith(f"{tree}/")), reverse=True):
        _run("umount", point)
    if tree.exists():
        shutil.rmtree(tree)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _run(*words: str) -> None:
    environ = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise RuntimeError(f"{_shown(words)}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")


def _shown(words: Sequence[str]) -> str:
    text = " ".join(words)
    return text if len(text) < 200 else text[:200] + " ..."


def _say(text: str) -> None:
    sys.stderr.write(f"guest: {text}\n")
