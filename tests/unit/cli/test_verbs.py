from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli import main as cli
from forgeone_shim.errors import Unimplemented
from forgeone_shim.rpc import node_pb2
from tests.unit.cli.conftest import Forge
from tests.unit.cli.node_double import NodeDouble

Capture = pytest.CaptureFixture[str]
LINE = b"2016-10-06T00:17:09.669794202Z stdout F hello\n2016-10-06T00:17:10Z stderr F oops\n"


def test_run_pulls_shows_the_output_passes_the_code_and_leaves_the_pod(
    node: NodeDouble, forge: Forge, capsys: Capture
) -> None:
    node.pods.output, node.pods.ends_at_once = LINE, 3
    assert forge("run", "reg/app:1", "--", "sh", "-c", "x") == 3
    out, err = capsys.readouterr()
    assert out == "hello\n"
    assert err.splitlines() == ["pulling reg/app:1", "abababababab  done  2MB", "oops"]
    assert node.pods.calls == ["run", "create", "start"]


def test_run_rm_removes_pod_and_logs(node: NodeDouble, forge: Forge, tmp_path: Path) -> None:
    node.pods.output, node.pods.ends_at_once = LINE, 0
    assert forge("run", "--rm", "-q", "reg/app:1") == 0
    assert node.pods.pods == {}
    assert list((tmp_path / "logs").iterdir()) == []


def test_run_asks_for_what_the_flags_say(node: NodeDouble, forge: Forge) -> None:
    argv = ["-d", "-q", "--name", "web", "-e", "A=b=c", "-p", "127.0.0.1:8080:80", "-p", "53:5353/udp"]
    assert forge("run", *argv, "--entrypoint", "/bin/x", "reg/app:1", "one", "--two") == 0
    (_, config) = next(iter(node.pods._of.values()))
    assert (list(config.command), list(config.args)) == (["/bin/x"], ["one", "--two"])
    assert [(env.key, env.value) for env in config.envs] == [("A", b"b=c")]
    assert config.linux.security_context.namespace_options.pid == cri.CONTAINER
    assert config.image.image == "sha256:" + "cd" * 32
    assert next(iter(node.pods.pods.values())).metadata.name == "web"


def test_run_does_not_pull_what_is_here(node: NodeDouble, forge: Forge) -> None:
    node.images.here["app"] = cri.Image(id="sha256:" + "ee" * 32)
    assert forge("run", "-d", "app") == 0
    assert node.images.requests == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["-p", "80", "a"], "--publish: '80'"),
        (["-p", "0:80", "a"], "--publish"),
        (["-p", "1:2/icmp", "a"], "--publish"),
        (["-p", "1:2", "--host-network", "a"], "--host-network"),
        (["-e", "A", "a"], "--env: 'A'"),
        (["--name", "Ü", "a"], "--name"),
        (["--pull", "never", "a"], "not on this node"),
        (["--password-stdin", "a"], "--username"),
    ],
)
def test_run_refuses_what_makes_no_sense_before_anything_is_made(
    argv: list[str], says: str, node: NodeDouble, forge: Forge, capsys: Capture
) -> None:
    assert forge("run", *argv) == 125
    assert says in capsys.readouterr().err
    assert node.pods.calls == []


def test_a_pull_is_for_the_handler_of_the_pod_to_come(node: NodeDouble, forge: Forge) -> None:
    assert forge("run", "-d", "-q", "--handler", "forgeone-wasm", "reg/app:1") == 0
    assert forge("pull", "-q", "--handler", "spin", "reg/app:2") == 0
    assert node.images.asked[0].runtime_handler == "forgeone-wasm"
    assert [one.runtime_handler for one in node.images.requests] == ["forgeone-wasm", "spin"]


def test_run_takes_the_pod_away_when_the_start_fails(
    node: NodeDouble, forge: Forge, capsys: Capture, tmp_path: Path
) -> None:
    node.pods.fail_start = True
    assert forge("run", "-q", "reg/app:1") == 125
    assert capsys.readouterr().err == "forge: PERMISSION_DENIED: not this one\n"
    assert node.pods.pods == {}
    assert list((tmp_path / "logs").iterdir()) == []


def test_ctrl_c_stops_the_container_in_its_grace_period_and_removes_the_pod(node: NodeDouble, forge: Forge) -> None:
    def interrupt() -> None:
        while "start" not in node.pods.calls:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert forge("run", "--rm", "-q", "--stop-timeout", "7", "reg/app:1") == 130
    thread.join()
    assert "stop container in 7 s" in node.pods.calls
    assert node.pods.pods == {}


def test_listings_show_what_is_there(node: NodeDouble, forge: Forge, capsys: Capture) -> None:
    assert forge("run", "-d", "-q", "--name", "web", "reg/app:1") == 0
    capsys.readouterr()
    for verb, expected in (
        ("pods", "web   forge      Ready"),
        ("ps", "web   reg/app:1  Running"),
        ("images", "reg/app  1    cdcdcdcdcdcdc  wasi/wasm  4.2MB"),
    ):
        assert forge(verb) == 0
        assert expected in capsys.readouterr().out
        assert forge(verb, "-o", "json") == 0
        assert json.loads(capsys.readouterr().out)[0]["id"]


def test_listings_say_which_engine_has_what(node: NodeDouble, forge: Forge, capsys: Capture) -> None:
    assert forge("run", "-d", "-q", "--name", "web", "reg/app:1") == 0
    (pod,), (container,) = node.pods.pods, node.pods.containers
    node.images.engines.pods[pod].engine = "wasm"
    node.images.engines.containers[container] = "native"
    capsys.readouterr()
    for verb, engine in (("pods", "wasm"), ("ps", "native")):
        assert forge(verb) == 0
        head, row = capsys.readouterr().out.splitlines()
        assert (head.split()[-1], row.split()[-1]) == ("ENGINE", engine)


def test_a_paused_container_is_listed_as_such_until_it_is_resumed(
    node: NodeDouble, forge: Forge, capsys: Capture
) -> None:
    assert forge("run", "-d", "-q", "--name", "web", "reg/app:1") == 0
    for verb, state in (("pause", "Paused"), ("resume", "Running")):
        capsys.readouterr()
        assert forge(verb, "web") == 0
        assert capsys.readouterr().out == "web\n"
        assert forge("ps") == 0
        assert f"reg/app:1  {state}" in capsys.readouterr().out
    assert forge("stop", "web") == 0
    assert forge("pause", "web") == 1
    assert "no running containers" in capsys.readouterr().err


def test_a_trace_reads_like_that_of_system_calls(node: NodeDouble, forge: Forge, capsys: Capture) -> None:
    assert forge("run", "-d", "-q", "--name", "web", "reg/app:1") == 0
    capsys.readouterr()
    assert forge("trace", "-f", "web") == 0
    said = capsys.readouterr()
    assert said.err == "forge: 7 calls were not kept\n"
    lines = said.out.splitlines()
    assert lines[0].endswith('.000001 path_open(fd=4, path="a\\x1b[2J") = noent <0.000018>')
    assert [line.split(" ", 1)[1] for line in lines[1:]] == ["forgeone:log@1 write() = 0", "proc_exit(code=3) = ?"]
    assert forge("trace", "web", "-o", "json") == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["number"] for one in shown] == [1, 2]
    assert (shown[0]["duration"], shown[1]["duration"], shown[1]["result"]) == (18_000, None, "0")


def test_ps_hides_what_has_ended_unless_asked(node: NodeDouble, forge: Forge, capsys: Capture) -> None:
    node.pods.ends_at_once = 0
    assert forge("run", "-q", "--name", "job", "reg/app:1") == 0
    capsys.readouterr()
    assert forge("ps") == 0
    assert "job" not in capsys.readouterr().out
    assert forge("ps", "-a", "--pod", "job") == 0
    assert "Exited" in capsys.readouterr().out


def test_exec_passes_output_and_code_through(
    node: NodeDouble, forge: Forge, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert forge("run", "-d", "-q", "--name", "web", "reg/app:1") == 0
    capfdbinary.readouterr()
    assert forge("exec", "web", "--", "ls", "-l") == 42
    assert capfdbinary.readouterr() == (b"ls -l\xff\n", b"oh\n")


def test_exec_without_a_command_is_a_usage_error(forge: Forge, capsys: Capture) -> None:
    assert forge("exec", "web") == 125
    assert "command: is missing" in capsys.readouterr().err


def test_stop_and_rm_take_names_and_id_prefixes(node: NodeDouble, forge: Forge, capsys: Capture) -> None:
    assert forge("run", "-d", "-q", "--name", "web", "reg/app:1") == 0
    pod = next(iter(node.pods.pods))
    assert forge("rm", pod[:12]) == 1
    assert "is running" in capsys.readouterr().err
    assert forge("stop", "-t", "3", "web") == 0
    assert "stop container in 3 s" in node.pods.calls
    assert forge("rm", pod[:12]) == 0
    assert node.pods.pods == {}


def test_rm_removes_only_logs_that_carry_the_pods_uid(node: NodeDouble, forge: Forge, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    metadata = cri.PodSandboxMetadata(name="evil", uid="u-1")
    annotations = {"forgeone.dev/log-directory": str(precious)}
    node.pods.pods["ff"] = cri.PodSandbox(id="ff", metadata=metadata, annotations=annotations)
    assert forge("rm", "evil") == 0
    assert precious.is_dir()


def test_rm_all_removes_every_pod(node: NodeDouble, forge: Forge) -> None:
    for _ in range(2):
        assert forge("run", "-d", "-q", "reg/app:1") == 0
    assert forge("rm", "--all", "--force") == 0
    assert node.pods.pods == {}
    assert forge("rm") == 2


def test_rm_all_leaves_the_pods_of_another_runtime_alone(node: NodeDouble, forge: Forge) -> None:
    for _ in range(2):
        assert forge("run", "-d", "-q", "reg/app:1") == 0
    ours, theirs = node.pods.pods
    node.images.engines.pods[ours].engine = "native"
    node.images.upstream = node_pb2.GetUpstreamResponse(socket="/run/c.sock")
    assert forge("rm", "--all", "--force") == 0
    assert list(node.pods.pods) == [theirs]


def test_an_ambiguous_name_is_refused(node: NodeDouble, forge: Forge, capsys: Capture) -> None:
    for id_ in ("aa1", "aa2"):
        node.pods.pods[id_] = cri.PodSandbox(id=id_)
    assert forge("rm", "aa") == 2
    assert "more than one pod: aa1, aa2" in capsys.readouterr().err


def test_what_is_not_there_is_named(forge: Forge, capsys: Capture) -> None:
    assert forge("logs", "nobody") == 1
    assert capsys.readouterr().err == "forge: container or pod 'nobody' not found\n"
    assert forge("rmi", "nothing") == 1
    assert "'nothing' not found" in capsys.readouterr().err


def test_pull_prints_the_id_and_rmi_removes_it(node: NodeDouble, forge: Forge, capsys: Capture) -> None:
    assert forge("pull", "reg/app:1") == 0
    out, err = capsys.readouterr()
    assert out == "sha256:" + "cd" * 32 + "\n"
    assert "done" in err
    assert forge("rmi", "reg/app:1") == 0
    assert node.images.here == {}


def test_a_refused_pull_shows_the_servers_words(forge: Forge, capsys: Capture) -> None:
    assert forge("pull", "reg/secret:1") == 1
    assert "PERMISSION_DENIED: the registry wants a login" in capsys.readouterr().err


def test_an_unreachable_registry_is_not_taken_for_an_unreachable_node(forge: Forge, capsys: Capture) -> None:
    assert forge("pull", "reg/down:1") == 1
    assert "UNAVAILABLE: cannot connect to reg" in capsys.readouterr().err


def test_a_password_comes_from_standard_input(node: NodeDouble, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hunter2\n"))
    assert forge("pull", "--username", "me", "--password-stdin", "reg/app:1") == 0
    given = node.images.requests[0].credentials
    assert (given.username, given.password) == ("me", "hunter2")


def test_no_server_is_one_clear_line(tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["--socket", str(tmp_path / "none"), "pods"]) == 1
    says = f"forge: no answer from {tmp_path}/none: No such file or directory (is forgeoned running?"
    assert capsys.readouterr().err.startswith(says)


def test_the_socket_may_be_named_before_or_after_the_verb_or_in_the_environment(
    node: NodeDouble, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert cli.main(["pods", "--socket", node.socket]) == 0
    monkeypatch.setenv("FORGEONE_SOCKET", f"unix://{node.socket}")
    assert cli.main(["version"]) == 0
    assert "forgeone 9, CRI v1" in capsys.readouterr().out


def test_reload_names_what_changed_and_what_waits(node: NodeDouble, forge: Forge, capsys: Capture) -> None:
    assert forge("reload") == 0
    assert capsys.readouterr().out == "nothing has changed\n"
    node.images.reloaded = node_pb2.ReloadResponse(changed=["log.level"], needs_restart=["root"])
    assert forge("reload") == 0
    assert capsys.readouterr().out == "log.level: changed\nroot: needs a restart\n"
    assert forge("reload", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"changed": ["log.level"], "needsRestart": ["root"]}


def test_beside_another_runtime_what_is_run_here_stays_here(node: NodeDouble, forge: Forge) -> None:
    assert forge("run", "-d", "-q", "--name", "alone", "reg/app:1") == 0
    node.images.upstream = node_pb2.GetUpstreamResponse(socket="/run/c.sock")
    node.images.asked.clear()
    node.images.info = {"platform": "linux/amd64"}
    assert forge("run", "-d", "-q", "--name", "beside", "reg/app:1") == 0
    assert [pod.runtime_handler for pod in node.pods.pods.values()][-1] == "forgeone-native"
    assert {spec.runtime_handler for spec in node.images.asked} == {"forgeone-native"}


def test_of_two_runtimes_it_is_told_whose_things_are(node: NodeDouble, forge: Forge, capsys: Capture) -> None:
    assert forge("run", "-d", "--name", "ours", "reg/app:1") == 0
    assert forge("run", "-d", "--name", "theirs", "reg/app:1") == 0
    ours, _ = node.pods.pods
    first, _ = node.pods.containers
    node.images.engines.pods[ours].engine = "native"
    node.images.engines.containers[first] = "native"
    both, only = (cri.Image(id=f"sha256:{letter * 64}", repo_tags=[f"reg/{letter}:1"]) for letter in "ab")
    node.images.here = {"a": both, "b": only}
    node.images.ours = {"a": both}
    node.images.upstream = node_pb2.GetUpstreamResponse(
        socket="/run/c.sock", name="containerd", version="2.4", image_ids=[both.id, only.id]
    )
    capsys.readouterr()
    for verb in ("pods", "ps"):
        assert forge(verb) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {name: line.split()[-1] for line in lines for name in ("ours", "theirs") if name in line.split()} == {
            "ours": "native",
            "theirs": "containerd",
        }
    assert forge("images") == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert "forgeone, containerd" in first
    assert "containerd" in second
    assert "forgeone" not in second
    assert forge("version") == 0
    assert "upstream containerd 2.4 at /run/c.sock\n" in capsys.readouterr().out
    node.images.upstream = node_pb2.GetUpstreamResponse(socket="/run/c.sock", problem="UNAVAILABLE: no")
    assert forge("version", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["upstream"]["problem"] == "UNAVAILABLE: no"


def test_listings_of_an_older_forgeoned_leave_out_what_it_does_not_tell(
    node: NodeDouble, forge: Forge, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(*_: Any) -> None:
        raise Unimplemented("not in this version")

    assert forge("run", "-d", "-q", "--name", "web", "reg/app:1") == 0
    for method in ("ListEngines", "GetUpstream"):
        monkeypatch.setattr(type(node.images), method, older)
    capsys.readouterr()
    for verb in ("pods", "ps"):
        assert forge(verb) == 0
        assert "web" in capsys.readouterr().out
