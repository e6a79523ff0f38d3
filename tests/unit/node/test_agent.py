"""The agent against an API server: turns, labels, cordons, and nodes that are given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound, Unavailable
from forgeone_shim.node import labels, retirement, rollout
from forgeone_shim.node.agent import LOOK, Agent, Condition, Habits
from forgeone_shim.node.cluster import Cluster, Lease
from forgeone_shim.node.labels import How
from forgeone_shim.node.retirement import retire
from forgeone_shim.node.rollout import Glance, Turns, choose
from tests.unit.node.apiserver import ApiServer

NODE = "node-7"


@dataclass
class Hands:
    """A host. ``pending`` is done by an installation, unless that ``fails``."""

    pending: tuple[str, ...] = ("lay out version 1.0.0",)
    version: str = ""
    fails: str = ""
    refuses: str = ""
    stays: str = ""
    ready: bool = True
    seen: list[object] = field(default_factory=list)

    def look(self) -> Condition:
        if self.refuses:
            raise FailedPrecondition(self.refuses)
        engines = ("native", "wasm") if self.version else ()
        return Condition(self.version, bool(self.version) and self.ready, "no crun", engines, self.pending)

    def install(self) -> None:
        self.seen.append("install")
        if self.fails:
            raise FailedPrecondition(self.fails)
        self.pending, self.version = (), "1.0.0"

    def uninstall(self, how: How) -> None:
        self.seen.append(how)
        if self.stays:
            raise FailedPrecondition(self.stays)
        self.pending, self.version = ("lay out version 1.0.0",), ""

    def places(self) -> Sequence[Path]:
        return ()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture
def api(server: ApiServer) -> ApiServer:
    server.nodes.clear()
    server.leases.clear()
    server.events.clear()
    server.add_node(NODE)
    return server


def _agent(api: ApiServer, hands: Hands, pod: str = "pod-1", *, patient: bool = True, name: str = NODE) -> Agent:
    cluster = Cluster(str(api.kubeconfig))
    habits = Habits(pod=pod, cordon=True, taint=True, patient=patient)
    return Agent(cluster, Turns(cluster, "forgeone", "rollout", 1, name), hands, name, habits)


def _reasons(api: ApiServer) -> list[str]:
    return [event["reason"] for event in api.events]


def test_a_node_is_installed_in_its_turn_and_says_what_it_can(api: ApiServer) -> None:
    hands = Hands()

    def install() -> None:
        node = api.nodes[NODE]
        assert node["spec"]["unschedulable"] is True
        assert [taint["key"] for taint in node["spec"]["taints"]] == ["forgeone.dev/installing"]
        assert api.leases["rollout"]["spec"]["holderIdentity"] == NODE
        # It is among those that are asked for back.
        assert api.labels(NODE) == {"forgeone.dev/version": ""}
        Hands.install(hands)

    hands.install = install  # type: ignore[method-assign]
    agent = _agent(api, hands)
    assert agent.step() == LOOK
    assert api.labels(NODE) == {
        "forgeone.dev/ready": "true",
        "forgeone.dev/version": "1.0.0",
        "forgeone.dev/engine-native": "true",
        "forgeone.dev/engine-wasm": "true",
    }
    assert api.annotations(NODE) == {}
    assert api.nodes[NODE]["spec"] == {"taints": []}
    assert api.leases["rollout"]["spec"]["holderIdentity"] == ""
    assert _reasons(api) == ["ForgeOneInstalled"]
    event = api.events[0]
    assert event["involvedObject"]["uid"] == api.nodes[NODE]["metadata"]["uid"]
    agent.step()
    assert hands.seen == ["install"]
    assert _reasons(api) == ["ForgeOneInstalled"]


def test_what_is_not_ready_any_more_is_told_once_and_so_is_what_is_again(api: ApiServer) -> None:
    hands = Hands(pending=(), version="1.0.0", ready=False)
    agent = _agent(api, hands)
    agent.step()
    agent.step()
    assert "forgeone.dev/ready" not in api.labels(NODE)
    assert _reasons(api) == ["ForgeOneNotReady"]
    hands.ready = True
    agent.step()
    assert api.labels(NODE)["forgeone.dev/ready"] == "true"


def test_labels_that_somebody_removes_come_back(api: ApiServer) -> None:
    agent = _agent(api, Hands(pending=(), version="1.0.0"))
    agent.step()
    api.change_node(NODE, {"metadata": {"labels": {"forgeone.dev/ready": None}}})
    agent.step()
    assert api.labels(NODE)["forgeone.dev/ready"] == "true"


def test_an_installation_that_fails_is_told_and_tried_again_later(api: ApiServer) -> None:
    hands = Hands(fails="forgeoned is not ready: no crun")
    agent = _agent(api, hands)
    assert [agent.step(), agent.step()] == [30.0, 60.0]
    agent._failures = 5
    assert agent.step() == 900.0
    assert _reasons(api) == ["ForgeOneFailed"]
    assert api.events[0]["type"] == "Warning"
    assert api.leases["rollout"]["spec"]["holderIdentity"] == ""
    # The node is as it was: pods may come to it until the next try.
    assert api.annotations(NODE) == {}
    assert api.nodes[NODE]["spec"] == {"taints": []}
    assert api.labels(NODE) == {}
    hands.fails = ""
    assert agent.step() == LOOK
    assert api.annotations(NODE) == {}
    assert "unschedulable" not in api.nodes[NODE]["spec"]


def test_what_an_installation_has_left_to_do_is_no_success(api: ApiServer) -> None:
    hands = Hands()
    # That of an agent before this one, of another version.
    hands.install = lambda: None  # type: ignore[method-assign]
    assert _agent(api, hands).step() == 30.0
    assert _reasons(api) == ["ForgeOneFailed"]
    assert "unschedulable" not in api.nodes[NODE]["spec"]


def test_what_the_agent_changed_itself_is_no_reason_to_look_again(api: ApiServer) -> None:
    hands = Hands()
    agent = _agent(api, hands)
    agent.step()
    cluster = Cluster(str(api.kubeconfig))
    begun = time.monotonic()
    agent._wakes.put(cluster.node(NODE))
    agent.rest(0.2)
    assert time.monotonic() - begun >= 0.2
    agent._wakes.put(None)
    agent.rest(20)
    api.change_node(NODE, {"spec": {"unschedulable": True}})
    agent._wakes.put(cluster.node(NODE))
    agent.rest(20)
    hands.pending, hands.fails = ("restart forgeoned.service",), "no"
    api.change_node(NODE, {"spec": {"unschedulable": None}})
    agent.step()
    begun = time.monotonic()
    # Files that a failed try has changed, and put back.
    agent._wakes.put(None)
    agent.rest(0.2)
    assert time.monotonic() - begun >= 0.2


def test_a_node_that_cannot_run_it_says_why(api: ApiServer) -> None:
    hands = Hands(refuses="the kubelet is a part of k3s")
    assert _agent(api, hands).step() == 30.0
    assert _reasons(api) == ["ForgeOneRefused"]
    assert hands.seen == []


@pytest.mark.parametrize("patient", [True, False])
def test_a_cordon_of_somebody_else_is_waited_for_and_kept(api: ApiServer, patient: bool) -> None:
    api.change_node(NODE, {"spec": {"unschedulable": True}})
    hands = Hands()
    agent = _agent(api, hands, patient=patient)
    agent.step()
    assert hands.seen == ([] if patient else ["install"])
    assert api.nodes[NODE]["spec"]["unschedulable"] is True
    api.change_node(NODE, {"spec": {"unschedulable": None}})
    agent.step()
    assert hands.seen == ["install"]


@pytest.mark.parametrize(
    "meanwhile", [{"spec": {"unschedulable": True}}, {"metadata": {"annotations": {labels.UNINSTALL: "refuse"}}}]
)
def test_what_somebody_asks_for_while_a_turn_is_waited_for_counts(api: ApiServer, meanwhile: dict[str, object]) -> None:
    cluster = Cluster(str(api.kubeconfig))
    lease = cluster.make_lease("forgeone", "rollout", "node-8", 60)
    hands = Hands()
    waiting = threading.Thread(target=_agent(api, hands).step)
    waiting.start()
    time.sleep(0.1)
    api.change_node(NODE, meanwhile)
    cluster.hold_lease("forgeone", lease, "", 60)
    waiting.join(20)
    assert hands.seen == []
    assert api.leases["rollout"]["spec"]["holderIdentity"] == ""


def test_others_taints_stay_and_a_patch_that_meets_anothers_is_made_anew(api: ApiServer) -> None:
    other = {"key": "gpu", "value": "yes", "effect": "NoExecute", "timeAdded": "2026-11-22T21:08:42Z"}
    api.change_node(NODE, {"spec": {"taints": [other]}})
    hands = Hands()

    def install() -> None:
        api.change_node(NODE, {"spec": {"taints": [*api.nodes[NODE]["spec"]["taints"], {**other, "key": "late"}]}})
        api.refuse.append(("PATCH", 409))
        Hands.install(hands)

    hands.install = install  # type: ignore[method-assign]
    _agent(api, hands).step()
    assert [taint["key"] for taint in api.nodes[NODE]["spec"]["taints"]] == ["gpu", "late"]


def test_only_one_node_installs_at_a_time(api: ApiServer) -> None:
    api.add_node("node-8")
    at_once, most = [0], [0]

    def hands() -> Hands:
        made = Hands()

        def install() -> None:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            time.sleep(0.05)
            at_once[0] -= 1
            Hands.install(made)

        made.install = install  # type: ignore[method-assign]
        return made

    agents = [_agent(api, hands(), name=name) for name in (NODE, "node-8")]
    threads = [threading.Thread(target=agent.step) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [1]
    assert [api.labels(name)["forgeone.dev/version"] for name in (NODE, "node-8")] == ["1.0.0", "1.0.0"]


def test_a_turn_of_a_node_that_died_ends(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "SECONDS", 1)
    cluster = Cluster(str(api.kubeconfig))
    cluster.make_lease("forgeone", "rollout", "dead", 1)
    begun = time.monotonic()
    with Turns(cluster, "forgeone", "rollout", 1, NODE).turn():
        assert 0.9 < time.monotonic() - begun < 5


def test_a_turn_that_was_this_nodes_before_is_taken_up_again(api: ApiServer) -> None:
    cluster = Cluster(str(api.kubeconfig))
    cluster.make_lease("forgeone", "rollout", NODE, 60)
    with Turns(cluster, "forgeone", "rollout", 1, NODE).turn(lambda: pytest.fail("it waits")):
        pass


def test_a_turn_is_kept_when_the_agent_is_told_to_end(api: ApiServer) -> None:
    cluster = Cluster(str(api.kubeconfig))
    with pytest.raises(SystemExit), Turns(cluster, "forgeone", "rollout", 1, NODE).turn():
        raise SystemExit(0)
    assert api.leases["rollout"]["spec"]["holderIdentity"] == NODE


@pytest.mark.parametrize(
    ("holders", "now", "expected"),
    [
        ([None], 0.0, ("l0", 60.0)),
        ([""], 0.0, ("l0", 60.0)),
        (["other"], 10.0, ("", 50.0)),
        (["other"], 60.0, ("l0", 60.0)),
        (["other", ""], 10.0, ("l1", 50.0)),
        (["", "me"], 10.0, ("l1", 0.0)),
        (["other", "another"], 59.0, ("", 1.0)),
    ],
)
def test_which_turn_is_free(holders: list[str | None], now: float, expected: tuple[str, float]) -> None:
    glances = {
        f"l{number}": None if holder is None else Glance(Lease(f"l{number}", "1", holder, "", 60), 0.0)
        for number, holder in enumerate(holders)
    }
    assert choose(glances, "me", now) == expected


def test_nodes_are_given_back_when_asked_and_only_then(api: ApiServer) -> None:
    hands = Hands()
    agent = _agent(api, hands)
    agent.step()
    cluster = Cluster(str(api.kubeconfig))
    left: list[object] = []
    retiring = threading.Thread(target=lambda: left.append(retire(cluster, [], How.DRAIN, Deadline.after(20))))
    retiring.start()
    while labels.UNINSTALL not in api.annotations(NODE):
        time.sleep(0.01)
    agent.step()
    retiring.join(20)
    assert left == [{}]
    assert hands.seen == ["install", How.DRAIN]
    assert api.labels(NODE) == {}
    # It stays so while the agents still run, and is over for the pod of a DaemonSet that comes later.
    agent.step()
    assert hands.seen == ["install", How.DRAIN]
    _agent(api, hands, "pod-2").step()
    assert hands.seen == ["install", How.DRAIN, "install"]
    assert api.annotations(NODE) == {}


def test_a_node_that_cannot_be_given_back_stays_and_is_named(api: ApiServer) -> None:
    hands = Hands()
    agent = _agent(api, hands)
    agent.step()
    hands.stays = "ForgeOne runs 2 pods here"
    cluster = Cluster(str(api.kubeconfig))
    left: list[object] = []
    retiring = threading.Thread(target=lambda: left.append(retire(cluster, [], How.REFUSE, Deadline.after(20))))
    retiring.start()
    while labels.UNINSTALL not in api.annotations(NODE):
        time.sleep(0.01)
    agent.step()
    retiring.join(20)
    assert left == [{NODE: "ForgeOne runs 2 pods here"}]
    assert api.annotations(NODE) == {}
    agent.step()
    assert api.labels(NODE)["forgeone.dev/ready"] == "true"


def test_who_asks_for_nodes_back_outlives_an_api_server_that_is_away(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retirement, "_PAUSE", 0.01)
    cluster = Cluster(str(api.kubeconfig))
    _agent(api, Hands()).step()
    nodes, asked = cluster.nodes, iter(range(9))

    def seldom(selector: str) -> object:
        if next(asked) in {1, 2}:
            raise Unavailable("the API server: away")
        return nodes(selector)

    monkeypatch.setattr(cluster, "nodes", seldom)
    assert retire(cluster, [], How.FORCE, Deadline.after(0.5)) == {NODE: "its agent has not given it back in time"}


def test_nodes_are_asked_no_more_when_asking_fails(api: ApiServer) -> None:
    _agent(api, Hands()).step()
    with pytest.raises(NotFound):
        retire(Cluster(str(api.kubeconfig)), [NODE, "none"], How.FORCE, Deadline.after(5))
    assert api.annotations(NODE) == {}


def test_a_node_whose_agent_is_not_there_is_named_in_time(api: ApiServer) -> None:
    _agent(api, Hands()).step()
    left = retire(Cluster(str(api.kubeconfig)), [], How.FORCE, Deadline.after(0.5))
    assert left == {NODE: "its agent has not given it back in time"}


def test_an_api_server_that_does_not_answer_is_waited_for(tmp_path: Path, api: ApiServer) -> None:
    text = api.kubeconfig.read_text().replace(str(api._server.server_port), "1")
    nowhere = tmp_path / "kubeconfig"
    nowhere.write_text(text)
    with pytest.raises(Unavailable, match="the API server"):
        Cluster(str(nowhere)).node(NODE)
    api.refuse.append(("GET", 503))
    assert _agent(api, Hands()).step() == 30.0
    with pytest.raises(InvalidInput, match="--kubeconfig"):
        Cluster(str(tmp_path / "none"))
