"""What this host is: facts that a plan depends on, read once when the engine is built."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from forgeone_shim.kernel import capabilities, cgroups, idmapped
from forgeone_shim.kernel.cgroups import CgroupHost, Mode
from forgeone_shim.kernel.mounts import has_recursive_attributes

_CAP_SYS_RESOURCE = "CAP_SYS_RESOURCE"
_SHARED_OPTIONS = frozenset({"nsdelegate", "memory_recursiveprot"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Facts of the host: control groups, what capabilities can be given, which security modules run.

    ``cgroup_mount_options`` are those of the one cgroup2 superblock that a mount without them would take away from the
    whole host; ``quick_moves`` says that the kernel was told to make moves between cgroups fast, and
    ``recursive_attributes`` that it can make a mount read-only with all that is mounted below it, and
    ``user_namespaces`` that its overlays take layers of a user namespace.
    """

    cgroups: CgroupHost
    capabilities: frozenset[str]
    oom_score_adj: int = 0
    apparmor: bool = False
    swap_limit: bool = False
    hugepage_sizes: frozenset[str] = frozenset()
    cgroup_mount_options: tuple[str, ...] = ()
    quick_moves: bool = False
    recursive_attributes: bool = False
    user_namespaces: bool = False

    @property
    def lowest_oom_score_adj(self) -> int:
        """A process without CAP_SYS_RESOURCE cannot go below the value it started with."""
        return -1000 if _CAP_SYS_RESOURCE in self.capabilities else self.oom_score_adj


def read(driver: str) -> Host:
    """Look at this host."""
    found = cgroups.detect(driver)
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Cap")
    )
    bounding, permitted = int(status["CapBnd"], 16), int(status["CapPrm"], 16)
    memory = found.v1.get("memory", "")
    options = _unified_options(found)
    return Host(
        cgroups=found,
        capabilities=capabilities.from_mask(bounding & permitted),
        oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
        apparmor=has_apparmor(),
        swap_limit=_swap_limit(found, memory),
        hugepage_sizes=_hugepage_sizes(found),
        cgroup_mount_options=tuple(sorted(options & _SHARED_OPTIONS)),
        quick_moves="favordynmods" in options,
        recursive_attributes=has_recursive_attributes(),
        user_namespaces=idmapped.supported(),
    )


def has_apparmor() -> bool:
    """Whether the kernel confines by AppArmor, and says by which profiles."""
    enabled = _reads("/sys/module/apparmor/parameters/enabled").startswith("Y")
    return enabled and Path("/sys/kernel/security/apparmor/profiles").exists()


def _reads(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _swap_limit(found: CgroupHost, memory: str) -> bool:
    if found.mode is not Mode.V2:
        return bool(memory) and Path(memory, "memory.memsw.limit_in_bytes").exists()
    if not found.unified:
        return False
    # The root cgroup has no memory.swap.max; any other cgroup has it, so that of this process is asked.
    own = _reads("/proc/self/cgroup").strip().rpartition("::")[2]
    if own and own != "/":
        return Path(found.unified + own, "memory.swap.max").exists()
    return any(Path(entry.path, "memory.swap.max").exists() for entry in os.scandir(found.unified) if entry.is_dir())


def _hugepage_sizes(found: CgroupHost) -> frozenset[str]:
    if not found.has("hugetlb"):
        return frozenset()
    try:
        names = [path.name for path in Path("/sys/kernel/mm/hugepages").iterdir()]
    except OSError:
        return frozenset()
    return frozenset(size_name(int(name.removeprefix("hugepages-").removesuffix("kB"))) for name in names)


def size_name(kilobytes: int) -> str:
    """As the kernel names hugetlb files: ``64KB``, ``2MB``, ``1GB``."""
    for unit, size in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kilobytes >= size:
            return f"{kilobytes // size}{unit}"
    return f"{kilobytes}KB"


def _unified_options(found: CgroupHost) -> frozenset[str]:
    for line in _reads("/proc/self/mounts").splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[1] == found.unified:
            return frozenset(fields[3].split(","))
    return frozenset()
