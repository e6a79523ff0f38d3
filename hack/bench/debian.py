"""The bench against Debian's own containerd, runc and CNI plugins, every daemon on directories and names of its own.

python -m hack.bench.debian [--with-pull] [arguments of hack.bench.bench]
python -m hack.bench.debian --node [arguments of hack.bench.node]
"""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from hack.bench import bench, node
from hack.lab import containerd, images
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry

_LAYERS, _LAYER_BYTES = 5, 40 << 20


def main(argv: Sequence[str]) -> int:
    """Start both, bench them, remove both; returns the bench's exit code."""
    if {"-h", "--help"} & set(argv):
        sys.stdout.write(f"{__doc__}\n")
        sys.argv = ["hack.bench.bench", "--help"]
        return bench.main()
    if missing := containerd.missing():
        sys.stderr.write(f"{missing}\n")
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
        other = containerd.Containerd(directory / "containerd", pause=pause, certs=certs)
        stack.callback(other.close)
        stack.callback(other.start().remove_pods)
        runtimes = ["--runtime", f"containerd={other.socket}", "--runtime", f"forgeone={forgeone.socket}"]
        arguments = ["--image", image, *runtimes, *rest]
        if "--node" in rest:
            return node.main([item for item in arguments if item != "--node"])
        sys.argv = ["bench", *arguments]
        return bench.main()


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
