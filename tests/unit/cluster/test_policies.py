"""The whole way: an API server over HTTPS, the watch's own process, and what is in force on the node."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from forgeone_shim.cluster import objects, wire
from forgeone_shim.cluster import policies as cluster
from forgeone_shim.cluster.policies import PATIENCE, SOURCE, ClusterPolicies
from forgeone_shim.cluster.session import Session
from forgeone_shim.cluster.store import Store
from forgeone_shim.cluster.watch import ApiError
from forgeone_shim.config.model import ClusterConfig
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel import landlock
from hack.lab import leaks
from tests.unit.cluster.server import ApiServer
from tests.unit.cluster.test_objects import made

FLOOR, NONE, BAD = {"floor": True}, {"floor": False}, {"flour": True}
SECONDS = 20.0
_EXEC = "client.authentication.k8s.io/v1"


def until(holds: Callable[[], Any], what: str = "") -> Any:
    """Wait for another process to come to it."""
    end = time.monotonic() + SECONDS
    while not (found := holds()):
        assert time.monotonic() < end, what or "it did not happen"
        time.sleep(0.01)
    return found


class Node:
    """A node's policies of the cluster, and what was put in force."""

    def __init__(self, directory: Path, config: ClusterConfig) -> None:
        (directory / "state").mkdir(exist_ok=True)
        self.root, self.scratch = directory / "kept", directory / "state" / "cluster"
        self.files: frozenset[str] = frozenset()
        self.it = ClusterPolicies(self.root, self.scratch, config)

    def start(self) -> Node:
        self.it.start(self.take)
        return self

    def take(self, found: Mapping[str, Policy]) -> frozenset[str]:
        return self.files & found.keys()

    @property
    def floors(self) -> dict[str, bool]:
        return {one.name: one.floor for one in self.it.policies}

    @property
    def pid(self) -> int:
        """Of the watch's process; 0: there is none."""
        return next(leaks.watches(os.getpid()), 0)


def keep(directory: Path, data: bytes) -> None:
    """What an earlier life has left, all of it."""
    store = Store(directory / "kept")
    store.prepare()
    store.write("a", data)
    store.complete()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    (tmp_path / "api").mkdir()
    with ApiServer(tmp_path / "api") as running:
        yield running


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    all_: list[Node] = []

    def make(kubeconfig: Path | str, **config: Any) -> Node:
        all_.append(Node(tmp_path, ClusterConfig(kubeconfig=str(kubeconfig), node_name="n1", **config)))
        return all_[-1]

    yield make
    for one in all_:
        one.it.close()
    for one in all_:
        assert not one.pid, "the watch's process is gone with it"
        assert not one.scratch.exists(), "and so are its files"


def test_what_is_applied_is_in_force_and_the_cluster_is_told(server: ApiServer, nodes: Any) -> None:
    server.limit = 2
    for name in "abc":
        server.put(name, FLOOR)
    node = nodes(server.kubeconfig)
    node.files = frozenset({"c"})
    node.start()
    until(lambda: node.floors == dict.fromkeys("abc", True))
    until(lambda: "contract.policies_dir" in server.condition("c").get("message", ""))
    node.files = frozenset()
    node.it.shadowed(node.files)
    server.put("a", BAD)
    server.delete("b")
    server.put("d", FLOOR)
    until(lambda: node.floors == {"a": True, "c": True, "d": True}, "and of a what it said before")
    for name in "cd":
        until(lambda name=name: server.condition(name).get("status") == "True")
    until(lambda: server.condition("a").get("status") == "False")
    told = server.condition("a")
    assert told["message"].startswith("n1: ztapolicies/a: spec.flour") and told["observedGeneration"] == 2
    until(lambda: [one for one in server.events if one["involvedObject"]["name"] == "a"])
    assert node.it.problem() == ("PoliciesRefused", "cannot be used: a")
    server.put("a", NONE)
    until(lambda: not node.floors["a"] and node.it.problem() == ("", ""))
    assert sum("limit=" in one for one in server.asked) == 2, "one list, of two parts"
    figures = {one.name: one.values[0][1] for one in node.it.figures()}
    assert (figures["forgeone_cluster_policies"], figures["forgeone_cluster_connected"]) == (3, True)


def test_without_its_server_a_node_has_what_it_had_over_restarts_too(
    server: ApiServer, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("a", FLOOR)
    server.put("b", FLOOR)
    node = nodes(server.kubeconfig, required=True).start()
    until(lambda: len(node.floors) == 2 and node.it.standing.listed)
    node.it.close()
    server.stop()
    again = nodes(server.kubeconfig, required=True).start()
    assert again.floors == {"a": True, "b": True} and again.it.waiting({}) == ""
    until(lambda: again.it.standing.trouble)
    assert again.it.problem() == ("", ""), "a server may be away for a while"
    later = time.time() + PATIENCE + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert again.it.problem()[0] == "Unreachable"
    monkeypatch.undo()
    with ApiServer(server.directory, server.port) as back:
        back.put("b", NONE)
        until(lambda: again.floors == {"b": False}, "a whole list says what is gone")
        assert again.it.problem() == ("", "")


def test_a_server_that_forgot_the_past_is_listed_anew(server: ApiServer, nodes: Any) -> None:
    server.put("a", FLOOR)
    server.put("b", FLOOR)
    node = nodes(server.kubeconfig).start()
    until(lambda: len(node.floors) == 2)
    with server.changed:
        del server.objects["a"]
    server.forget()
    until(lambda: node.floors == {"b": True})


def test_a_watch_that_is_killed_is_replaced_and_takes_nothing_with_it(server: ApiServer, nodes: Any) -> None:
    server.put("a", FLOOR)
    node = nodes(server.kubeconfig).start()
    until(lambda: node.floors)
    first = node.pid
    os.kill(first, signal.SIGKILL)
    server.delete("a")
    server.put("b", FLOOR)
    until(lambda: node.floors == {"b": True})
    assert node.pid != first
    assert node.it.standing.restarts == 1


def test_pods_wait_for_the_first_list_where_it_is_required_but_static_ones(server: ApiServer, nodes: Any) -> None:
    server.deny = 403
    node = nodes(server.kubeconfig, required=True).start()
    until(lambda: "is forbidden" in node.it.standing.trouble)
    assert "is forbidden" in node.it.waiting({})
    assert "is forbidden" in node.it.waiting({SOURCE: "api"})
    assert node.it.waiting({SOURCE: "file"}) == ""
    assert node.it.problem()[0] == "NeverListed"
    server.deny = 0
    until(lambda: node.it.waiting({}) == "")


def test_nobody_waits_where_it_is_not_required(nodes: Any, tmp_path: Path) -> None:
    node = nodes(tmp_path / "none").start()
    assert node.it.waiting({}) == ""
    until(lambda: "No such file" in node.it.standing.trouble)


def test_what_cannot_be_read_is_as_good_as_no_list(server: ApiServer, nodes: Any, tmp_path: Path) -> None:
    server.put("a", FLOOR)
    keep(tmp_path, b"{")
    again = nodes(server.kubeconfig, required=True)
    assert again.it.waiting({}) and "a" in again.it.problem()[1]
    again.start()
    until(lambda: again.floors == {"a": True} and not again.it.waiting({}))


def test_credentials_may_change_while_it_runs(server: ApiServer, tmp_path: Path) -> None:
    from forgeone_shim.cluster.api import Server

    asking = Server(server.kubeconfig, tmp_path)
    assert asking.page("")["items"] == []
    server.token = "Bearer another"
    with pytest.raises(ApiError, match="Unauthorized"):
        asking.page("")
    (server.directory / "token").write_text("another")
    assert asking.page("")["items"] == []


class Listing:
    """A watch that tells a whole list, however often it is begun."""

    def batch(self) -> list[wire.Told]:
        return [wire.Begun(), wire.Came("uid", 1, made("a", FLOOR)), wire.Listed()]

    def end(self) -> None:
        pass


def test_a_watch_that_ends_with_every_list_is_begun_ever_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full: what came is in force, but all of it has to come anew."""
    begun: list[float] = []

    def full(_: Store, name: str, data: bytes) -> None:
        begun.append(time.monotonic())
        raise InternalError("write: No space left on device")

    monkeypatch.setattr(Store, "write", full)
    monkeypatch.setattr(cluster, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    config = ClusterConfig(kubeconfig="/none", required=True)
    it = ClusterPolicies(
        tmp_path / "kept", tmp_path / "scratch", config, lambda *_: nullcontext(cast(Session, Listing()))
    )
    it.start(lambda _: frozenset())
    until(lambda: len(begun) == 4)
    it.close()
    assert begun[3] - begun[2] > 0.08 > begun[1] - begun[0]
    assert [one.name for one in it.policies] == ["a"]
    assert "No space left" in it.waiting({}), "what is not kept would not outlive forgeoned"


def test_a_program_may_give_the_credentials(server: ApiServer, nodes: Any, tmp_path: Path) -> None:
    token = {"token": server.token.removeprefix("Bearer ")}
    answer = json.dumps({"apiVersion": _EXEC, "kind": "ExecCredential", "status": token})
    text = yaml.safe_load(server.kubeconfig.read_text())
    program = f"echo x > {tmp_path}/stolen; echo x >/dev/null; echo '{answer}'"
    text["users"][0]["user"] = {"exec": {"apiVersion": _EXEC, "command": "sh", "args": ["-c", program]}}
    server.kubeconfig.write_text(yaml.safe_dump(text))
    server.put("a", FLOOR)
    node = nodes(server.kubeconfig).start()
    until(lambda: node.floors == {"a": True})
    assert not landlock.version() or not (tmp_path / "stolen").exists()


def test_a_cluster_can_be_left_and_another_joined(server: ApiServer, nodes: Any) -> None:
    server.put("a", FLOOR)
    node = nodes(server.kubeconfig).start()
    until(lambda: node.floors)
    node.it.follow(ClusterConfig(kubeconfig=str(server.kubeconfig), node_name="n1", required=True))
    assert node.pid and node.floors
    node.it.follow(ClusterConfig())
    assert not node.pid and node.floors == {} and not node.root.exists()
    assert list(node.it.figures()) == [] and node.it.waiting({}) == ""
    node.it.follow(ClusterConfig(kubeconfig=str(server.kubeconfig)))
    until(lambda: node.floors == {"a": True})


def test_a_node_that_leaves_its_cluster_while_it_is_down_keeps_nothing(nodes: Any, tmp_path: Path) -> None:
    keep(tmp_path, objects.file_of(made("a", FLOOR)))
    assert nodes("/none").floors == {"a": True}
    assert nodes("").floors == {}
    assert not (tmp_path / "kept").exists()


def test_what_a_watch_that_was_killed_has_left_goes_with_the_cluster(nodes: Any, tmp_path: Path) -> None:
    (tmp_path / "state/cluster").mkdir(parents=True)
    (tmp_path / "state/cluster/key").write_text("secret")
    assert not nodes("").scratch.exists()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.chmod(0o666), "can be written by everybody"),
        (lambda path: path.write_text("[]"), "is no kubeconfig"),
        (lambda path: path.write_text("{"), "while parsing"),
        (lambda path: path.write_text("clusters: []"), ""),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_told(server: ApiServer, tmp_path: Path, spoil: Any, why: str) -> None:
    from forgeone_shim.cluster.api import Server

    spoil(server.kubeconfig)
    with pytest.raises(ApiError) as caught:
        Server(server.kubeconfig, tmp_path).page("")
    assert caught.value.status == 0
    assert why in str(caught.value)


@pytest.mark.filterwarnings("ignore:SOCKS")
@pytest.mark.parametrize("who", ["certificate-authority", "proxy-url"])
def test_whom_a_kubeconfig_trusts_is_looked_at(server: ApiServer, tmp_path: Path, who: str) -> None:
    from forgeone_shim.cluster.api import Server

    text = yaml.safe_load(server.kubeconfig.read_text())
    if who == "proxy-url":
        text["clusters"][0]["cluster"]["proxy-url"] = "socks5://127.0.0.1:1"
        why = "socks"
    else:
        (server.directory / "server.pem").chmod(0o666)
        why = "server.pem is not trusted: can be written by everybody"
    server.kubeconfig.write_text(yaml.safe_dump(text))
    with pytest.raises(ApiError, match=why):
        Server(server.kubeconfig, tmp_path).page("")


def test_a_server_that_is_silent_for_long_is_asked_again(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgeone_shim.cluster import api

    monkeypatch.setattr(api, "_SILENCE", 0.1)
    asking = api.Server(server.kubeconfig, tmp_path)
    assert list(asking.watch("100")) == []
    monkeypatch.setattr(api, "_ANSWER", 0.1)
    with server.silent(), pytest.raises(ApiError, match="timed out"):
        asking.page("")


def test_a_kubeconfig_may_name_a_proxy(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgeone_shim.cluster.api import Server

    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        text = yaml.safe_load(server.kubeconfig.read_text())
        text["clusters"][0]["cluster"]["proxy-url"] = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        server.kubeconfig.write_text(yaml.safe_dump(text))
        asked: list[bytes] = []

        def refuse() -> None:
            end, _ = proxy.accept()
            with end:
                asked.append(end.recv(4096))
                end.sendall(b"HTTP/1.1 403 no\r\n\r\n")

        waiting = threading.Thread(target=refuse)
        waiting.start()
        with pytest.raises(ApiError, match="403 no"):
            Server(server.kubeconfig, tmp_path).page("")
        waiting.join()
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{server.port} ".encode())


def test_a_server_that_is_not_the_one_is_told_nothing(server: ApiServer, tmp_path: Path) -> None:
    from forgeone_shim.cluster.api import Server

    (tmp_path / "other").mkdir()
    with ApiServer(tmp_path / "other") as other:
        text = server.kubeconfig.read_text().replace(str(server.port), str(other.port))
        server.kubeconfig.write_text(text)
        with pytest.raises(ApiError, match="certificate verify failed"):
            Server(server.kubeconfig, tmp_path).page("")
        assert other.asked == []


def test_an_event_that_is_nested_too_deep_is_a_fault_that_is_told() -> None:
    from forgeone_shim.cluster import api

    with pytest.raises(ApiError, match="cannot be read"):
        api._event(b"[" * 200_000)


def test_where_the_kind_is_not_known_any_more_a_watch_says_so_as_a_list_does(server: ApiServer, tmp_path: Path) -> None:
    from forgeone_shim.cluster.api import Server

    server.deny = 404
    asking = Server(server.kubeconfig, tmp_path)
    for ask in (lambda: asking.page(""), lambda: list(asking.watch("100"))):
        with pytest.raises(ApiError, match="the cluster knows no ZTAPolicy"):
            ask()
