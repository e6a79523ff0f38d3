"""A kind cluster whose nodes run ForgeOne.

python -m hack.kind up [--mode beside|replace|installer] [--workers N] [--microvm] [--base kindest/node:TAG] [--dry-run]
python -m hack.kind load IMAGE... | install | test [arguments of pytest] | down

It needs the commands docker (25 or newer) and kind (0.27 or newer). Files of a cluster are in
~/.cache/forgeone/kind/NAME (or $FORGEONE_KIND_DIR/NAME).
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from forgeone_shim.errors import FailedPrecondition, ForgeError
from forgeone_shim.version import VERSION
from hack.bundle.layout import REPOSITORY
from hack.kind import plan, settings
from hack.kind.plan import Place, Step
from hack.kind.settings import Settings

_BUNDLE: Final = "forgeone-{version}-{machine}.tar.gz"
_IMAGE: Final = "forgeone-{version}-{machine}.oci.tar"
_WHERE: Final = {
    "docker": "https://docs.docker.com/engine/install/",
    "kind": "https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
    "helm": "`make setup` brings it",
}
Run = Callable[[Step], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: that of the first command that fails."""
    options, rest = _parser().parse_known_args(argv)
    if rest and options.verb != "test":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    place = Place(_directory() / options.name)
    try:
        if options.verb == "up":
            _up(options, place)
        else:
            _later(options, rest, place, _known(place))
    except ForgeError as error:
        sys.stderr.write(f"kind: {error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.kind", description="A kind cluster whose nodes run ForgeOne.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default=Settings().name, help="the cluster (forgeone)")
    common.add_argument("--dry-run", action="store_true", help="print the commands, and execute none")
    common.add_argument("--dist", type=Path, default=REPOSITORY / "dist", help="where the bundle is or is made (dist)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", parents=[common], help="the node image, a registry, and the cluster")
    up.add_argument("--mode", choices=settings.MODES, default=Settings().mode)
    up.add_argument("--base", default=Settings().base, help="kind's node image (%(default)s)")
    up.add_argument("--workers", type=int, default=Settings().workers, help="nodes besides the control plane (2)")
    up.add_argument("--microvm", action="store_true", help="QEMU, a guest's kernel and /dev/kvm for the nodes")
    up.add_argument("--registry-port", type=int, default=Settings().registry_port, help="on loopback (5001)")
    load = verbs.add_parser("load", parents=[common], help="bring images of Docker to the nodes")
    load.add_argument("images", nargs="+", metavar="IMAGE")
    verbs.add_parser("install", parents=[common], help="install or upgrade the chart")
    verbs.add_parser("test", parents=[common], help="run tests/e2e/cluster; further arguments are pytest's")
    verbs.add_parser("down", parents=[common], help="remove the cluster and its registry")
    return parser


def _up(options: argparse.Namespace, place: Place) -> None:
    wanted = Settings(
        name=options.name,
        mode=options.mode,
        base=options.base,
        workers=options.workers,
        microvm=options.microvm,
        registry_port=options.registry_port,
    )
    run = _runner(options.dry_run, ("docker", "kind"))
    if wanted.microvm and not Path("/dev/kvm").exists():
        raise FailedPrecondition("this host has no /dev/kvm; without --microvm nodes have the other engines")
    if place.settings.exists():
        raise FailedPrecondition(f"there are files of a cluster {wanted.name} in {place.directory}: take it down first")
    steps = plan.up(wanted, place, VERSION)
    if options.dry_run:
        _all(steps, run)
        return
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, place.directory, ignore_errors=True)
        _write(wanted, place)
        if wanted.mode != "installer":
            # The bundle is copied: Docker sees nothing outside of the directory it is given.
            shutil.copyfile(_artifact(options.dist, _BUNDLE), place.context / "bundle.tar.gz")
            if wanted.microvm:
                run(plan.boot_set(sys.executable, place))
        _all(steps, run)
        undo.pop_all()
    sys.stdout.write(f"export KUBECONFIG={shlex.quote(str(place.kubeconfig))}\n")


def _later(options: argparse.Namespace, rest: Sequence[str], place: Place, known: Settings) -> None:
    run = _runner(
        options.dry_run, {"install": ("docker", "kind", "helm"), "test": ()}.get(options.verb, ("docker", "kind"))
    )
    match options.verb:
        case "load":
            with tempfile.TemporaryDirectory(prefix="forgeone-kind-") as scratch:
                archive = Path(scratch, "images.tar")
                _all([plan.save(options.images, archive), *plan.load(known, archive)], run)
        case "install":
            archive = options.dist / _named(_IMAGE) if options.dry_run else _artifact(options.dist, _IMAGE)
            _all(plan.install(known, place, archive), run)
        case "test":
            run(plan.test(known, place, sys.executable, rest))
        case _:
            for step in plan.down(known, place):
                run(step)
            if not options.dry_run:
                shutil.rmtree(place.directory)


def _write(wanted: Settings, place: Place) -> None:
    registry = place.directory / "certs.d" / wanted.registry_inside
    # A boot set is put where nothing is yet; without one there is an empty directory for the Dockerfile to copy.
    for directory in (registry, place.context if wanted.microvm else place.context / "boot"):
        directory.mkdir(parents=True)
    (registry / "hosts.toml").write_text(settings.hosts(wanted))
    place.cluster.write_text(settings.cluster(wanted, VERSION, place.directory))
    place.values.write_text(settings.values(wanted))
    shutil.copyfile(Path(__file__).with_name("Dockerfile"), place.context / "Dockerfile")
    (place.context / "config.toml").write_text(settings.forgeone(wanted))
    (place.context / "crictl.yaml").write_text(settings.crictl())
    (place.context / "kind.conf").write_text(settings.unit(wanted))
    place.settings.write_text(wanted.text())


def _known(place: Place) -> Settings:
    try:
        return settings.parse(place.settings.read_text())
    except FileNotFoundError:
        message = f"there is no cluster {place.directory.name} of hack.kind: `python -m hack.kind up` makes one"
        raise FailedPrecondition(message) from None


def _directory() -> Path:
    return Path(os.environ.get("FORGEONE_KIND_DIR") or Path.home() / ".cache/forgeone/kind").absolute()


def _named(template: str) -> str:
    return template.format(version=VERSION, machine=platform.machine())


def _artifact(dist: Path, template: str) -> Path:
    """A file of the bundle's, which is made where it is not there."""
    path = dist / _named(template)
    if not path.exists():
        command = [sys.executable, "-m", "hack.bundle", "--output", str(dist), "--image"]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdin=subprocess.DEVNULL)
    return path


def _runner(dry: bool, programs: Sequence[str]) -> Run:
    if dry:
        return lambda step: print(shlex.join(step.argv))
    # Those of the environment that this runs in count, too: helm is one.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    for program in programs:
        if shutil.which(program, path=path) is None:
            raise FailedPrecondition(f"the command {program} is missing: {_WHERE[program]}")

    def execute(step: Step) -> None:
        sys.stderr.write(f"+ {shlex.join(step.argv)}\n")
        environment = {**os.environ, "PATH": path, **step.env}
        subprocess.run(step.argv, cwd=REPOSITORY, env=environment, check=True, stdin=subprocess.DEVNULL)

    return execute


def _all(steps: Sequence[Step], run: Run) -> None:
    """Execute them; where one fails, what the others did is taken back, the newest first."""
    with ExitStack() as undo:
        for step in steps:
            # Also what failed may have done a part of it.
            if step.undo:
                undo.callback(_quietly, run, Step(step.undo))
            run(step)
        undo.pop_all()


def _quietly(run: Run, step: Step) -> None:
    try:
        run(step)
    except subprocess.CalledProcessError:
        # Whoever reads its output sees why; the first failure is what is reported.
        return


if __name__ == "__main__":
    raise SystemExit(main())
