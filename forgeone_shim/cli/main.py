"""The ``forge`` command: what an operator does with a node."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from forgeone_shim.cli import arguments, node_arguments
from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.version import VERSION

# As docker and podman do: a failure of the tool itself must not look like the exit code of what it ran.
_OWN_FAILURE = 125

_EPILOG = "FORGEONE_SOCKET names the socket of forgeoned (default: /run/forgeone/forgeone.sock)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    passes_code = args.verb in {"run", "exec", "attach"}
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup(1) has it
        signal.signal(signal.SIGHUP, _terminated)
    try:
        return _dispatch(args)
    except InvalidInput as error:
        return _failed(error, _OWN_FAILURE if passes_code else 2)
    except ForgeError as error:
        return _failed(error, _OWN_FAILURE if passes_code else 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of a pipe has gone: nobody is left to be told. Standard output must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="forge", description="Operate a ForgeOne node.", epilog=_EPILOG)
    top.add_argument("--version", action="version", version=f"forge {VERSION}")
    common = argparse.ArgumentParser(add_help=False)
    for target in (top, common):
        # Before or after the verb; the one after must not undo the one before.
        default = os.environ.get("FORGEONE_SOCKET", "") if target is top else argparse.SUPPRESS
        target.add_argument("--socket", default=default, metavar="PATH", help="forgeoned's socket")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("-o", "--output", choices=("table", "json"), default="table")
    login = argparse.ArgumentParser(add_help=False)
    login.add_argument("--username", default="", help="user of the registry; the password is asked for")
    login.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    login.add_argument("-q", "--quiet", action="store_true", help="show no progress")

    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)

    def verb(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common, *parents]
        )

    doctor = verb("doctor", "what this host lacks to run pods, and the command that mends it", output)
    doctor.add_argument("--fix", action="store_true", help="mend what needs no package to be installed")
    doctor.add_argument("-q", "--quiet", action="store_true", help="say nothing when pods can run here")
    doctor.add_argument("--config", default="", metavar="FILE", help="forgeoned's configuration file")

    verb("pods", "list pods", output)

    ps = verb("ps", "list containers", output)
    ps.add_argument("-a", "--all", action="store_true", help="those that do not run too")
    ps.add_argument("--pod", default="", help="of this pod only")

    images = verb("images", "list images", output)
    arguments.images(images.add_subparsers(dest="action", metavar="export|import"), common)

    arguments.packages(verb("pkg", "build, sign, verify and move packages"), common, output, login)

    pull = verb("pull", "pull an image", output, login)
    pull.add_argument("--handler", default="", help="for pods of this runtime handler: it may choose between platforms")
    pull.add_argument("image")

    arguments.contracts(
        verb("contract", "read, explain, sign and try contracts of pods"),
        verb("policy", "what this node's policies are, and whether they can be used"),
        common,
        output,
    )

    arguments.verify(verb("verify", "check in its registry who stands behind an image", output, login))

    rmi = verb("rmi", "remove images")
    rmi.add_argument("images", nargs="+", metavar="image")

    logs = verb("logs", "show what a container wrote")
    logs.add_argument("container", help="a container, or a pod (its newest container)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the container ends")
    logs.add_argument("-t", "--timestamps", action="store_true")
    logs.add_argument("--tail", type=_count, metavar="N", help="only the last N lines so far")

    execute = verb("exec", "run a command in a container and pass on its exit code")
    execute.add_argument("-i", "--stdin", action="store_true", help="pass standard input on")
    execute.add_argument("-t", "--tty", action="store_true", help="in a terminal of its own")
    execute.add_argument("--timeout", type=_count, default=0, metavar="SECONDS", help="kill it after so long")
    execute.add_argument("container", help="a container, or a pod with one running")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="-- command")

    attach = verb("attach", "the streams of a running container; ctrl-p ctrl-q let go of one with a terminal")
    attach.add_argument("--no-stdin", action="store_true", help="do not pass standard input on")
    attach.add_argument("container", help="a container, or a pod with one running")

    forward = verb("port-forward", "have ports of this host's loopback lead to ports of a pod")
    forward.add_argument("pod")
    forward.add_argument("ports", nargs="+", metavar="[LOCAL]:PORT", help="one number: the same port on both sides")

    run = verb("run", "run an image or a .forgepkg as a pod, show its output and pass on its exit code", login)
    run.add_argument("--name", default="", help="the pod's name (default: the image's and six random letters)")
    run.add_argument(
        "--engine", default="", choices=("native", "wasm", "microvm", "auto"), help="default: what the image is for"
    )
    run.add_argument("--handler", default="", help="a runtime handler, by its name")
    run.add_argument("-i", "--stdin", action="store_true", help="pass standard input on")
    run.add_argument("-t", "--tty", action="store_true", help="in a terminal of its own")
    run.add_argument("-v", "--volume", action="append", default=[], metavar="PATH:CONTAINERPATH[:ro]")
    run.add_argument("-m", "--memory", default="", metavar="BYTES", help="such as 64Mi")
    run.add_argument("--cpus", default="", metavar="N", help="such as 0.5")
    run.add_argument("--rm", action="store_true", help="remove the pod when the container has ended")
    run.add_argument("-d", "--detach", action="store_true", help="print the pod's id and leave it running")
    run.add_argument("-e", "--env", action="append", default=[], metavar="KEY=VALUE")
    run.add_argument("--host-network", action="store_true", help="use the host's network")
    run.add_argument("-p", "--publish", action="append", default=[], metavar="[IP:]HOSTPORT:PORT[/PROTOCOL]")
    run.add_argument("--entrypoint", default="", metavar="PROGRAM", help="in place of the image's own")
    run.add_argument("--pull", choices=("missing", "always", "never"), default="missing")
    run.add_argument("--log-dir", default="/var/log/forgeone", metavar="DIRECTORY", help="where its logs are kept")
    run.add_argument("--stop-timeout", type=_count, default=10, metavar="SECONDS", help="grace when interrupted")
    run.add_argument("--contract", default="", metavar="FILE", help="its contract: YAML, JSON, or a signed envelope")
    run.add_argument("--config", default="", metavar="FILE", help="of a forgeoned that is started for this call")
    run.add_argument("image", help="a name, an id, or a package's file")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- arguments")

    stop = verb("stop", "stop containers or pods")
    stop.add_argument("-t", "--timeout", type=_count, default=10, metavar="SECONDS", help="grace before it is killed")
    stop.add_argument("names", nargs="+", metavar="name")

    pause = verb("pause", "stop the processes of containers where they are")
    pause.add_argument("names", nargs="+", metavar="name", help="a container, or a pod (all that run in it)")

    trace = verb("trace", "show the calls of a WebAssembly guest to its host", output)
    trace.add_argument("-f", "--follow", action="store_true", help="go on until the container ends")
    trace.add_argument("container", help="a container that is traced, running or ended, or a pod with one container")

    inspect = verb("inspect", "everything that is known of containers or pods, as JSON")
    inspect.add_argument("names", nargs="+", metavar="name", help="a container, or a pod")

    arguments.dna(verb("dna", "fingerprints of containers"), common, output)

    resume = verb("resume", "let paused containers go on")
    resume.add_argument("names", nargs="+", metavar="name", help="a container, or a pod (all that run in it)")

    remove = verb("rm", "remove containers or pods")
    remove.add_argument("-f", "--force", action="store_true", help="even when it runs")
    remove.add_argument("-a", "--all", action="store_true", help="every pod that ForgeOne runs")
    remove.add_argument("names", nargs="*", metavar="name")

    arguments.audit(verb("audit", "read, verify and prove the node's audit log"), common, output)

    arguments.microvm(verb("microvm", "what virtual machines of this node boot"), common, output)

    node_arguments.node(verb("node", "put ForgeOne on a node of a cluster, and take it away"), common, output)

    verb("reload", "have forgeoned read its configuration again", output)

    verb("version", "versions of forge and forgeoned", output)
    return top


def _dispatch(args: argparse.Namespace) -> int:
    if args.verb == "doctor":
        from forgeone_shim.cli import doctor

        return doctor.command(args)
    if args.verb == "pkg":
        from forgeone_shim.cli import pkg

        return pkg.command(args)
    if args.verb in {"contract", "policy"}:
        from forgeone_shim.cli import contracts, policies

        return contracts.command(args) if args.verb == "contract" else policies.command(args)
    if args.verb == "microvm":
        from forgeone_shim.cli import engine

        return engine.command(args)
    if args.verb == "node":
        from forgeone_shim.cli import node

        return node.command(args)
    if args.verb == "verify":
        from forgeone_shim.cli import verify

        return verify.command(args)
    if args.verb == "audit" and args.action not in {"key", "accept"}:
        from forgeone_shim.cli import audit

        return audit.command(args)
    if args.verb in {"exec", "run"}:
        args.command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.verb == "exec" and not args.command:
        raise InvalidInput("command", "is missing", fix="forge exec CONTAINER -- COMMAND ...")
    if args.verb == "rm" and bool(args.names) is args.all:
        raise InvalidInput("name", "give names, or --all")
    if args.verb == "run":
        from forgeone_shim.cli import run

        return run.anywhere(args)
    # Here, not above: `forge --help` and `forge doctor` need neither gRPC nor the generated interface.
    from forgeone_shim.cli import (
        audit,
        client,
        containers,
        dna,
        forward,
        images,
        inspect,
        listing,
        logs,
        pause,
        pull,
        reload,
        stream,
        trace,
    )

    commands: dict[str, Callable[[client.Client, argparse.Namespace], int]] = {
        "audit": audit.operate,
        "pods": listing.pods,
        "ps": listing.containers,
        "images": images.command,
        "version": listing.version,
        "reload": reload.command,
        "pull": pull.command,
        "rmi": pull.remove,
        "logs": logs.command,
        "exec": stream.execute,
        "attach": stream.attach,
        "port-forward": forward.command,
        "stop": containers.stop,
        "pause": pause.pause,
        "resume": pause.resume,
        "trace": trace.command,
        "inspect": inspect.command,
        "dna": dna.command,
        "rm": containers.remove,
    }
    with client.Client(args.socket or client.DEFAULT_SOCKET) as connection:
        return commands[args.verb](connection, args)


def _failed(error: ForgeError, code: int) -> int:
    sys.stderr.write(f"forge: {error}\n")
    return code


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def _terminated(number: int, _: FrameType | None) -> None:
    # Unwinds, so that what is half done is undone.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
