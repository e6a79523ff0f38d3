"""``python -m hack.pictures [DIRECTORY]``: take the pictures anew. As root; everything it starts is taken away."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from hack.lab import guests, images, modules
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.settings import patient
from hack.pictures.terminal import Line, picture

TARGET: Final = Path(__file__).resolve().parents[2] / "docs/pictures"
_POLICY: Final = """\
apiVersion: forgeone.dev/v1
kind: ZTAPolicy
metadata: {name: restricted}
spec:
  floor: true
  contract: {profile: {privileged: false, host_network: false}}
  rules:
    - name: no-shells
      at: [exec]
      expression: "!(request.command[0] in ['sh', 'bash'])"
      message: nobody needs a shell in here
"""
_POLICIES: Final = "/etc/forgeone/policies.d"
_SECONDS: Final = 120

Type = Callable[[str], Line]


def main(argv: list[str]) -> int:
    """The exit code."""
    if os.geteuid() != 0:
        sys.stderr.write("pods are root's to run\n")
        return 1
    target = Path(argv[0]) if argv else TARGET
    target.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgeone-pictures-")))
        registry = stack.enter_context(Registry(directory))
        images.push(registry.address, "shop/web:1", images.busybox(("sh", "-c", "echo open; exec sleep 1000")))
        module = guests.guest(guests.say("ready\n"), guests.sleep(1000))
        images.push(registry.address, "shop/sorter:1", modules.artifact(module))
        daemon = Daemon([registry.address])
        stack.callback(daemon.close)
        stack.callback(daemon.remove_pods)
        (directory / "restricted.yaml").write_text(_POLICY)
        daemon.start()
        type_ = _typist(daemon, directory)
        for name, (title, scene) in SCENES.items():
            (target / f"{name}.svg").write_text(picture(title, name, scene(type_)) + "\n")
            sys.stdout.write(f"{target / name}.svg\n")
    return 0


def _typist(daemon: Daemon, directory: Path) -> Type:
    """Who types commands for that node, in a directory with the files that they name."""
    tools = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "FORGEONE_SOCKET": daemon.socket,
        "FORGEONE_CONFIG": str(daemon.config_file),
        "COLUMNS": "116",
    }
    policies = daemon.config.contract.policies_dir

    def type_(typed: str) -> Line:
        # What stands on a node in its usual place is elsewhere here.
        argv = [word.replace(_POLICIES, policies) for word in shlex.split(typed)]
        if argv[:2] == ["forge", "run"]:
            argv[2:2] = ["--log-dir", str(directory / "logs")]
        if argv[0] == "cp":
            Path(policies).mkdir(exist_ok=True)
        done = subprocess.run(
            argv,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=directory,
            timeout=patient(_SECONDS),
        )
        return Line(typed, done.stdout.replace(policies, _POLICIES))

    return type_


def _engines(type_: Type) -> list[Line]:
    return [
        type_("forge run -q -d --name web --engine auto shop.example/shop/web:1"),
        type_("forge run -q -d --name sorter --engine auto shop.example/shop/sorter:1"),
        type_("forge run -q -d --name tenant --engine microvm shop.example/shop/web:1"),
        type_("forge pods"),
        type_("forge ps"),
        type_("forge exec tenant -- uname -r"),
    ]


def _denied(type_: Type) -> list[Line]:
    return [
        type_("cat restricted.yaml"),
        type_(f"cp restricted.yaml {_POLICIES}"),
        type_(f"forge policy check {_POLICIES}/restricted.yaml"),
        type_("forge reload"),
        type_("forge exec web -- sh"),
        type_("forge run -q --host-network shop.example/shop/web:1"),
        type_("forge audit tail -n 2"),
    ]


def _dna(type_: Type) -> list[Line]:
    type_("forge run -q -d --name web-2 -m 64Mi shop.example/shop/web:1 -- sh -c 'exec sleep 999'")
    return [type_("forge dna show web"), type_("forge dna diff web web-2")]


def _doctor(type_: Type) -> list[Line]:
    return [type_("forge doctor")]


SCENES: Final[Mapping[str, tuple[str, Callable[[Type], list[Line]]]]] = {
    "engines": ("three engines on one node", _engines),
    "dna": ("who a container is", _dna),
    "denied": ("a policy of the node", _denied),
    "doctor": ("what a host lacks", _doctor),
}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
