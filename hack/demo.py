"""A pod runs on each engine: from an image in a registry to its log line, over CRI. All it makes is taken away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from hack.lab import guests, images, modules
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry

_PROGRAM = """
address=$(ip -4 -o addr show eth0 | awk '{print $4}')
echo "hello from pod $(hostname) at $address, kernel $(uname -r)"
"""


def main() -> int:
    """Run the demo; returns 0 when each pod's line was seen and nothing is left."""
    if os.geteuid() != 0:
        sys.stderr.write("the demo makes mounts, namespaces and links: run it as root\n")
        return 1
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgeone-demo-")))
        registry = stack.enter_context(Registry(directory))
        _say(f"a registry listens on {registry.address}")
        native = images.push(registry.address, "demo/hello:latest", images.busybox(("sh", "-c", _PROGRAM)))
        _say(f"{native} was built from this host's busybox and pushed to it")
        wasm = images.push(registry.address, "demo/wasm:latest", modules.artifact(_module()))
        _say(f"{wasm} was assembled, a WebAssembly module and nothing else, and pushed to it")

        daemon = Daemon([registry.address])
        stack.callback(daemon.close)
        daemon.start()
        _say(f"forgeoned serves CRI on {daemon.socket}")
        usable = _engines()

        good = True
        # The same image on both: a kernel of the pod's own is what differs.
        for engine, image in (("native", native), ("wasm", wasm), ("microvm", native)):
            if engine in usable:
                good &= _run(daemon, engine, image, str(directory / "logs"))
        good &= "native" in usable

        daemon.remove_pods()
        code = daemon.stop()
        left = daemon.left()
        _say("everything is stopped and removed" if not left else "left behind:\n" + "\n".join(left))
    return int(bool(code or left or not good))


def _module() -> bytes:
    return guests.guest(
        guests.say("hello from a WebAssembly module, in a pod whose /etc/hostname is "), guests.cat("/etc/hostname")
    )


def _run(daemon: Daemon, engine: str, image: str, logs: str) -> bool:
    """Whether the pod's line was seen."""
    words = ("run", "--rm", "--engine", engine, "--name", f"hello-{engine}", "--log-dir", logs, image)
    _say(f"forge run --rm --engine {engine} {image}")
    began = time.monotonic()
    done = _forge(daemon, *words)
    _say(f"exit code {done.returncode}, {(time.monotonic() - began) * 1000:.0f} ms with the pull")
    return done.returncode == 0 and "hello from" in done.stdout


def _engines() -> set[str]:
    """Which engines can run pods here."""
    usable = set()
    report = json.loads(_python("doctor", "-o", "json").stdout)
    for check in report["checks"]:
        noun, _, name = check["name"].partition(" ")
        if noun == "engine":
            why = "; ".join(problem["what"] for problem in check["problems"] if problem["fatal"] or not check["ok"])
            _say(f"engine {name}: " + ("can run here" if check["ok"] else f"cannot run here: {why}"))
            if check["ok"]:
                usable.add(name)
    return usable


def _forge(daemon: Daemon, *argv: str) -> subprocess.CompletedProcess[str]:
    done = _python("--socket", daemon.socket, *argv)
    sys.stderr.write(done.stderr)
    sys.stdout.write(done.stdout)
    sys.stdout.flush()
    return done


def _python(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "forgeone_shim.cli.main", *argv]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def _say(text: str) -> None:
    sys.stdout.write(f"--- {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
