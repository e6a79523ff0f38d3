"""The bench against Debian's own containerd, runc and CNI plugins, every daemon on directories and names of its own.

python -m hack.bench.debian [--with-pull] [arguments of hack.bench.bench]
python -m hack.bench.debian --node [arguments of hack.bench.node]
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc

from cri.api import runtime_pb2 as cri
from cri.api import runtime_pb2_grpc as cri_grpc
from hack.bench import bench, node
from hack.lab import images, leaks, notify
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry

_PLUGINS = Path("/usr/lib/cni")
_LAYERS, _LAYER_BYTES = 5, 40 << 20
# What containerd, its shims and the CNI plugins make outside of the directories they are given.
_SHARED = ("/run/containerd", "/var/lib/cni", "/sys/fs/cgroup/k8s.io")
_SHARED_CGROUPS = "*/k8s.io"
_CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.internal.v1.restart"]
[grpc]
  address = "{directory}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{directory}/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{certs}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      Root = "{directory}/runc"
"""


def main(argv: Sequence[str]) -> int:
    """Start both, bench them, remove both; returns the bench's exit code."""
    if {"-h", "--help"} & set(argv):
        sys.stdout.write(f"{__doc__}\n")
        sys.argv = ["hack.bench.bench", "--help"]
        return bench.main()
    missing = [name for name in ("containerd", "runc") if shutil.which(name) is None]
    if missing or not (_PLUGINS / "bridge").exists():
        sys.stderr.write("first: apt-get install containerd runc containernetworking-plugins\n")
        return 1
    with_pull, rest = "--with-pull" in argv, [item for item in argv if item != "--with-pull"]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgeone-bench-")))
        registry = stack.enter_context(Registry(directory / "registry")).address
        image = images.push(registry, "bench/busybox:latest", images.busybox())
        pause = images.push(registry, "bench/pause:latest", images.busybox(("sleep", "1000000")))
        if with_pull:
            rest += ["--pull-image", images.push(registry, "bench/large:latest", _large())]
        forgeone = Daemon([registry], {"FORGEONE_LOG__LEVEL": "warning"})
        stack.callback(forgeone.close)
        forgeone.start()
        stack.callback(forgeone.remove_pods)
        certs = forgeone.config.registry.config_path
        containerd = stack.enter_context(_containerd(directory / "containerd", pause=pause, certs=certs))
        runtimes = ["--runtime", f"containerd={containerd}", "--runtime", f"forgeone={forgeone.socket}"]
        arguments = ["--image", image, *runtimes, *rest]
        if "--node" in rest:
            return node.main([item for item in arguments if item != "--node"])
        sys.argv = ["bench", *arguments]
        return bench.main()


@contextmanager
def _containerd(directory: Path, *, pause: str, certs: str) -> Iterator[str]:
    """A containerd of the bench's own, and nothing of it left afterwards. Yields its socket."""
    tag, low = secrets.token_hex(3), secrets.randbelow(200) + 20
    (directory / "net.d").mkdir(parents=True)
    (directory / "net.d/10-bench.conflist").write_text(json.dumps(_network(directory, f"brc{tag}", f"10.{low}.0.0/16")))
    config = directory / "config.toml"
    config.write_text(
        _CONFIG.format(directory=directory, pause=pause, plugins=_PLUGINS, certs=certs, runc=shutil.which("runc"))
    )
    there = {path for path in _shared() if path.exists()}
    process = notify.start(["containerd", "--config", str(config)], os.environ, directory / "containerd.log")
    address = str(directory / "containerd.sock")
    try:
        yield address
        _remove_pods(address)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        marks = leaks.Marks(directory=str(directory), link_prefix=f"brc{tag}", cgroup_root=f"bench-{tag}")
        leaks.sweep(marks, f"brc{tag}", f"bench_{tag}")
        for path in _shared():
            if path not in there:
                _remove_empty(path)


def _shared() -> list[Path]:
    return [*map(Path, _SHARED), *Path("/sys/fs/cgroup").glob(_SHARED_CGROUPS)]


def _remove_empty(top: Path) -> None:
    """Only what holds nothing: another containerd's things stay."""
    for path in (*sorted(top.rglob("*/"), reverse=True), top):
        with suppress(OSError):
            path.rmdir()


def _network(directory: Path, bridge: str, subnet: str) -> dict[str, object]:
    """What a single node's containerd is usually given: a bridge, addresses, masquerading, host ports."""
    addresses: dict[str, object] = {"type": "host-local", "dataDir": str(directory / "ipam")}
    addresses |= {"ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    plugin = {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": True, "ipam": addresses}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": "0.4.0", "name": "bench", "plugins": [plugin, portmap]}


def _remove_pods(address: str) -> None:
    with grpc.insecure_channel(f"unix://{address}") as channel:
        runtime = cri_grpc.RuntimeServiceStub(channel)
        for pod in runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
            runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
            runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)


def _large() -> images.BuiltImage:
    """About 200 MB in five gzip layers that compress as programs do, each of many files."""
    layers = []
    for number in range(_LAYERS):
        entries: list[images.Entry] = []
        left = _LAYER_BYTES
        while left > 0:
            size = min(left, 64 << 10)
            noise = secrets.token_bytes(size // 2)
            entries.append(images.Entry(f"usr/{number}/{len(entries) // 64}/{len(entries)}", noise + bytes(size // 2)))
            left -= size
        layers.append(images.layer(entries))
    return images.build(layers, {"Cmd": ["true"]})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
