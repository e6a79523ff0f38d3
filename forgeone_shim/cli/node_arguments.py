"""The command line of ``forge node``."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

_KUBECONFIG: Final = "how the API server is reached (default: as a pod of the cluster)"


def node(parser: argparse.ArgumentParser, common: argparse.ArgumentParser, output: argparse.ArgumentParser) -> None:
    """``forge node``."""
    verbs = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    host, way = _host(), _way()

    install = _verb(verbs, "install", "put this ForgeOne on a node, or upgrade the one it has", host, way, output)
    install.add_argument("--dry-run", action="store_true", help="tell what would be done, and do nothing")
    install.add_argument(
        "--drain", action="store_true", help="with --replace: stop the pods that the other runtime runs"
    )

    uninstall = _verb(verbs, "uninstall", "give a node back to the runtime it had", host, output)
    stop = uninstall.add_mutually_exclusive_group()
    stop.add_argument("--drain", action="store_true", help="stop the pods that ForgeOne runs, with their grace")
    stop.add_argument("--force", action="store_true", help="stop them without, and go on where one cannot be removed")
    uninstall.add_argument("--purge", action="store_true", help="remove images, state and configuration as well")
    uninstall.add_argument("--service", choices=("systemd", "none"), default="systemd", help="as for install")
    uninstall.add_argument("--dry-run", action="store_true", help="tell what would be done, and do nothing")
    _timeout(uninstall)

    status = _verb(verbs, "status", "what is installed on a node, and whether it is in use", host, output)
    status.add_argument("-q", "--quiet", action="store_true", help="say nothing: 0 when pods can run, 1 when not")

    status.add_argument(
        "--bundle", default="", metavar="DIR", help="0 only when this bundle's version is installed (auto: this one's)"
    )

    prepare = _verb(verbs, "prepare", "what the unit does once a boot: forge doctor --fix, its findings kept", host)
    prepare.add_argument("--config", default="", metavar="FILE", help="forgeoned's configuration file")

    agent = _verb(verbs, "agent", "install on this node of a cluster, in turn with the others, and stay", host, way)
    _agent(agent)

    retire = _verb(verbs, "retire", "have the agents of a cluster uninstall, and wait for them", common)
    retire.add_argument("--kubeconfig", default="", metavar="FILE", help=_KUBECONFIG)
    stop = retire.add_mutually_exclusive_group()
    stop.add_argument("--drain", action="store_true", help="stop the pods that ForgeOne runs, with their grace")
    stop.add_argument("--force", action="store_true", help="stop them without, and go on where one cannot be removed")
    _timeout(retire, 1800)
    retire.add_argument("nodes", nargs="*", metavar="node", help="default: every node that has a ForgeOne")


def _host() -> argparse.ArgumentParser:
    host = argparse.ArgumentParser(add_help=False)
    host.add_argument(
        "--host-root", default="/", metavar="DIR", help="where the node's file system is seen (default: /)"
    )
    return host


def _way() -> argparse.ArgumentParser:
    """What install and agent have in common."""
    way = argparse.ArgumentParser(add_help=False)
    way.add_argument("--bundle", default="auto", metavar="DIR", help="an unpacked bundle; auto: the one that runs this")
    mode = way.add_mutually_exclusive_group()
    mode.add_argument(
        "--beside", dest="mode", action="store_const", const="beside", help="the runtime it has goes on (default)"
    )
    mode.add_argument("--replace", dest="mode", action="store_const", const="replace", help="in that one's place")
    way.set_defaults(mode="")
    way.add_argument(
        "--upstream", default="", metavar="SOCKET", help="the other runtime's (default: the one the kubelet uses)"
    )
    way.add_argument(
        "--kubelet",
        choices=("auto", "kubeadm", "config", "none"),
        default="auto",
        help="where its endpoint stands: kubeadm's flags, its configuration, found out (auto), or left alone (none)",
    )
    way.add_argument(
        "--service", choices=("systemd", "none"), default="systemd", help="none: start nothing, as for a disk image"
    )
    way.add_argument("--config", default="", metavar="FILE", help="what /etc/forgeone/config.toml is to hold")
    way.add_argument("--keep", type=_positive, default=2, metavar="N", help="versions that stay on the node (2)")
    _timeout(way)
    return way


def _agent(agent: argparse.ArgumentParser) -> None:
    agent.add_argument("--kubeconfig", default="", metavar="FILE", help=_KUBECONFIG)
    # The downward API's to say, in the agent's pod.
    name, namespace = os.environ.get("NODE_NAME", ""), os.environ.get("POD_NAMESPACE", "")
    agent.add_argument("--node", default=name, metavar="NAME", help="this node's (default: $NODE_NAME)")
    agent.add_argument("--namespace", default=namespace, metavar="NAME", help="of leases (default: $POD_NAMESPACE)")
    agent.add_argument("--lease", default="forgeone-node-rollout", metavar="NAME", help="by which nodes take turns")
    agent.add_argument("--max-unavailable", type=_positive, default=1, metavar="N", help="nodes at a time (1)")
    agent.add_argument("--cordon", action="store_true", help="let no new pod come while it installs")
    agent.add_argument("--taint", action="store_true", help="say so by forgeone.dev/installing=true:NoSchedule")
    agent.add_argument(
        "--cordoned",
        choices=("wait", "install"),
        default="wait",
        help="a node that somebody else has cordoned: wait until that is over, or install all the same",
    )


def _timeout(parser: argparse.ArgumentParser, seconds: int = 300) -> None:
    parser.add_argument(
        "--timeout", type=_positive, default=seconds, metavar="SECONDS", help=f"for all of it ({seconds})"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _verb(verbs: Any, name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=parents
    )
    return made
