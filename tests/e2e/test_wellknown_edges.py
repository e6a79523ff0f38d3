"""Well-known CNI plugins in-process beside the programs and after them, for many pods at once, and when they fail."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation
from forgeone_shim.network.cni.wellknown import find, leases
from tests.e2e.cni_lab import Doer, World, by_program, differences, in_process, iptables_save, run
from tests.e2e.network_lab import ip, run_as_host
from tests.e2e.test_wellknown_plugins import CASES, DUAL, V4, Case, bandwidth, bridge, life, port, portmap

pytestmark = pytest.mark.root

EVERYTHING = CASES["everything"].plugins
MASQUERADED = bridge(V4, isGateway=True, ipMasq=True)
ONE_ADDRESS = bridge(
    {"ranges": [[{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.9"}]]}, isGateway=True
)


def on_a_host(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Run a test in a network namespace of its own."""

    @wraps(test)
    def body(tmp_path: Path) -> None:
        run_as_host(lambda: test(tmp_path))

    return body


def veths() -> list[str]:
    return [link["ifname"] for link in json.loads(run("ip", "-json", "link")) if link["ifname"].startswith("veth")]


def own_rules() -> list[str]:
    """Rules and chains of containers, not of all of them together."""
    shared = ("CNI-HOSTPORT-", "CNI-FORWARD -m comment", "CNI-FORWARD", "CNI-ADMIN", "jump CNI-HOSTPORT")
    found = [line for lines in iptables_save().values() for line in lines]
    return [
        line
        for line in found
        if "10.88." in line or "fd88" in line or ("CNI-" in line and not any(s in line for s in shared))
    ]


def leased(world: World) -> list[str]:
    """The addresses that are taken."""
    names = [Path(name).name for name in world.files()]
    return sorted(name for name in names if name[0].isdigit() or name.startswith("fd"))


def nothing_left(world: World) -> bool:
    return (veths(), own_rules(), leased(world)) == ([], [], []) and "bwp" not in ip("link")


@pytest.mark.parametrize(
    "name", ["everything", "bridge-masquerade", "portmap-all", "firewall", "bandwidth-both", "ptp-dual"]
)
@pytest.mark.parametrize(
    "doers", [(by_program, in_process), (in_process, by_program)], ids=["process-deletes", "program-deletes"]
)
def test_either_undoes_what_the_other_did(name: str, doers: tuple[Doer, Doer], tmp_path: Path) -> None:
    case = CASES[name]
    expected = life(case, tmp_path / "alone", by_program, by_program)
    assert differences(expected, life(case, tmp_path / "both", *doers)) == []


@pytest.mark.parametrize("name", ["everything", "portmap-host-ip"])
def test_legacy_iptables_gets_the_same_rules(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "sbin"
    programs.mkdir()
    for version in ("ip", "ip6"):
        for suffix in ("tables", "tables-save", "tables-restore"):
            (programs / f"{version}{suffix}").symlink_to("/usr/sbin/xtables-legacy-multi")
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    case = CASES[name]
    expected = life(case, tmp_path / "programs", by_program, by_program)
    assert "nft" not in str(expected)
    assert differences(expected, life(case, tmp_path / "process", in_process, in_process)) == []
    assert differences(expected, life(case, tmp_path / "both", by_program, in_process)) == []


@pytest.mark.parametrize("given", ["path", "nothing"])
def test_a_container_whose_namespace_has_gone_leaves_nothing(given: str, tmp_path: Path) -> None:
    def body() -> None:
        with World(tmp_path, EVERYTHING) as world:
            path = world.pod("a")
            world.call(in_process, Command.ADD, "a")
            world.remove_pod("a")
            world.call(in_process, Command.DEL, "a", netns=path if given == "path" else "")
            # The kernel takes its time with a namespace, and the host's end goes with it.
            for name in veths():
                subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)
            assert nothing_left(world)
            world.call(in_process, Command.DEL, "a", netns="")

    run_as_host(body)


@on_a_host
def test_what_was_never_added_can_be_deleted(tmp_path: Path) -> None:
    with World(tmp_path, EVERYTHING) as world:
        world.call(in_process, Command.DEL, "a")
        assert nothing_left(world)


@on_a_host
def test_many_pods_come_and_go_at_once_by_both(tmp_path: Path) -> None:
    names = [f"p{number}" for number in range(24)]
    doers = {name: (in_process, by_program)[number % 3 == 2] for number, name in enumerate(names)}
    ports = {name: 9000 + number for number, name in enumerate(names)}
    with World(tmp_path, ()) as world:
        for name in names:
            world.pod(name)

        def plugins(name: str) -> tuple[dict[str, Any], ...]:
            own = bridge(DUAL, isGateway=True, ipMasq=True)
            own["ipam"]["dataDir"] = str(world.store)
            return (own, portmap(port(ports[name])), {"type": "firewall", "backend": "iptables"})

        def call(command: Command, name: str) -> None:
            doer = doers[name]
            mine = World.__new__(World)
            mine.__dict__.update(world.__dict__, plugins=plugins(name))
            mine.call(doer, command, name)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(partial(call, Command.ADD), names))
        addresses = [entry["address"] for name in names for entry in world.results[name]["ips"]]
        assert len(set(addresses)) == len(addresses) == 48
        assert len(veths()) == 24
        listed = iptables_save()
        for family in ("iptables-save", "ip6tables-save"):
            rules = listed[f"{family} nat"]
            for number in ports.values():
                assert sum(f"--dports {number} " in rule for rule in rules) == 1
                assert sum(f"--dport {number} -j DNAT" in rule for rule in rules) == 1
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(partial(call, Command.DEL), names))
        assert nothing_left(world)


@on_a_host
def test_what_pods_share_is_made_once_though_many_are_first(tmp_path: Path) -> None:
    plugins = (bridge(V4, isGateway=True), portmap(port(8080)), {"type": "firewall", "backend": "iptables"})
    names = [f"p{number}" for number in range(8)]
    with World(tmp_path, plugins) as world:
        for name in names:
            world.pod(name)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: world.call(in_process, Command.ADD, name), names))
        listed = iptables_save()
        every = [rule for table in ("nat", "filter") for rule in listed[f"iptables-save {table}"]]
        assert len(set(every)) == len(every)


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_loopback_does_and_answers_the_same(version: str, tmp_path: Path) -> None:
    def life_of(do: Doer, directory: Path) -> list[Any]:
        seen = []
        directory.mkdir()
        with World(directory, ({"type": "loopback"},), version) as world:
            run_in(world.pod("a"), lambda: ip("link", "set", "lo", "down"))
            world.call(do, Command.ADD, "a")
            # The program forgets the IP version, which 0.4.0 has in its results.
            versions = [ip.pop("version", "") for ip in world.results["a"]["ips"]]
            assert do is by_program or versions == (["4", "6"] if version == "0.4.0" else ["", ""])
            seen.append(world.snapshot())
            world.call(do, Command.CHECK, "a")
            world.call(do, Command.DEL, "a")
            seen.append(world.snapshot())
            with pytest.raises(CniError, match="loopback interface is down"):
                world.call(do, Command.CHECK, "a")
            world.remove_pod("a")
            world.call(do, Command.DEL, "a", netns=str(directory / "gone"))
        return seen

    expected = run_as_host(lambda: life_of(by_program, tmp_path / "program"))
    assert differences(expected, run_as_host(lambda: life_of(in_process, tmp_path / "process"))) == []


def _full(world: World, do: Doer) -> None:
    world.call(do, Command.ADD, "other")


def _twice(world: World, do: Doer) -> None:
    world.call(do, Command.ADD, "a")


def _other_address(_world: World, _do: Doer) -> None:
    ip("link", "add", "tbr0", "type", "bridge")
    ip("address", "add", "192.0.2.1/24", "dev", "tbr0")


def _no_bridge(_world: World, _do: Doer) -> None:
    ip("link", "add", "tbr0", "type", "ifb")


def _interface_there(world: World, _do: Doer) -> None:
    run_in(world.pod("a"), lambda: ip("link", "add", "eth0", "type", "ifb"))


REFUSALS: dict[str, tuple[Case, Callable[[World, Doer], None], str]] = {
    "no address left": (Case((ONE_ADDRESS,)), _full, "no IP addresses available in range set: 10.88.0.9-10.88.0.9"),
    "added twice": (Case((MASQUERADED,)), _twice, ""),
    "bridge has another address": (Case((MASQUERADED,)), _other_address, "already has an IP address different from"),
    "not a bridge": (Case((MASQUERADED,)), _no_bridge, "already exists but is not a bridge"),
    "interface is there": (Case((MASQUERADED,)), _interface_there, "already exists"),
    "no bridge before portmap": (Case((portmap(port(80)),)), lambda _w, _d: None, "must be called as chained plugin"),
    "no bridge before bandwidth": (
        Case((bandwidth(ingressRate=8000, ingressBurst=8000),)),
        lambda _w, _d: None,
        "must be called as chained plugin",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_program_refuses_is_refused_and_undone(name: str, tmp_path: Path) -> None:
    case, prepare, why = REFUSALS[name]

    def refuse(do: Doer, directory: Path) -> tuple[int, bool]:
        directory.mkdir()
        with World(directory, case.plugins) as world:
            world.pod("a")
            prepare(world, do)
            before = (veths(), own_rules(), leased(world))
            with pytest.raises(CniError) as refused:
                world.call(do, Command.ADD, "a")
            assert why in str(refused.value)
            return refused.value.code, (veths(), own_rules(), leased(world)) == before

    expected = run_as_host(lambda: refuse(by_program, tmp_path / "program"))[0]
    assert run_as_host(lambda: refuse(in_process, tmp_path / "process")) == (expected, True)


@on_a_host
def test_another_address_of_the_bridge_is_replaced_by_force(tmp_path: Path) -> None:
    with World(tmp_path, (bridge(V4, isGateway=True, forceAddress=True),)) as world:
        _other_address(world, in_process)
        world.call(in_process, Command.ADD, "a")
        shown = ip("-4", "address", "show", "tbr0")
        assert "10.88.0.1/24" in shown
        assert "192.0.2.1" not in shown


def test_an_iptables_that_fails_undoes_all_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "sbin"
    programs.mkdir()
    broken = programs / "xtables-nft-multi"
    broken.write_text("#!/bin/sh\ncase $1 in *-save) exit 0;; esac\necho broken >&2; exit 1\n")
    broken.chmod(0o755)
    for name in ("iptables", "ip6tables"):
        (programs / name).symlink_to(broken)

    def body() -> None:
        with World(tmp_path, (MASQUERADED,)) as world:
            world.pod("a")
            with monkeypatch.context() as patch:
                patch.setenv("PATH", str(programs), prepend=":")
                with pytest.raises(CniError, match="broken"):
                    world.call(in_process, Command.ADD, "a")
            assert nothing_left(world)

    run_as_host(body)


@on_a_host
def test_rules_that_someone_flushed_are_made_again_and_not_twice(tmp_path: Path) -> None:
    with World(tmp_path, (bridge(V4, isGateway=True), portmap(port(8080)))) as world:
        world.call(in_process, Command.ADD, "a")
        whole = iptables_save()
        world.call(in_process, Command.DEL, "a")
        run("iptables", "-t", "nat", "-F", "PREROUTING")
        world.call(in_process, Command.ADD, "a")
        again = iptables_save()
        assert sorted(again["iptables-save nat"]) == sorted(
            line.replace("10.88.0.2:", "10.88.0.3:") for line in whole["iptables-save nat"]
        )


@on_a_host
def test_addresses_of_unknown_attachments_are_collected(tmp_path: Path) -> None:
    with World(tmp_path, (bridge(V4, isGateway=True),), "1.1.0") as world:
        for pod in ("a", "b", "c"):
            world.call(in_process, Command.ADD, pod)
        assert world.results["a"]["cniVersion"] == "1.1.0"
        valid = [{"containerID": f"b-{'0' * 60}", "ifname": "eth0"}]
        config = {**world.plugins[0], "name": "lab-net", "cniVersion": "1.1.0"}
        told = {**config, "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
        in_process("bridge", Invocation(command=Command.GC, config=told))
        assert leased(world) == ["10.88.0.3"]
        with pytest.raises(CniError, match="not a list of attachments"):
            in_process("bridge", Invocation(command=Command.GC, config=config))
        assert leased(world) == ["10.88.0.3"]
        in_process("bridge", Invocation(command=Command.STATUS, config=config))


@on_a_host
def test_a_lock_that_another_process_holds_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    with World(tmp_path, (bridge(V4),)) as world:
        holder_ready = "import fcntl,sys;f=open(sys.argv[1],'w');fcntl.flock(f,2);print(1,flush=True);sys.stdin.read()"
        directory = world.store / "lab-net"
        directory.mkdir(parents=True)
        holder = subprocess.Popen(
            ["python3", "-c", holder_ready, str(directory / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(DeadlineExceeded), leases.locked(str(world.store), "lab-net", Deadline.after(0.1)):
            pass
        given_up = Deadline()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: world.call(in_process, Command.ADD, "a"))
            holder.communicate()
            waiting.result(10)
        # Whoever gave up does not keep what it got afterwards.
        with leases.locked(str(world.store), "lab-net", given_up):
            pass
        world.call(in_process, Command.DEL, "a")


@on_a_host
def test_an_address_and_a_mac_can_be_asked_for(tmp_path: Path) -> None:
    plugin = bridge(V4, isGateway=True, args={"cni": {"mac": "02:00:00:00:00:07"}})
    with World(tmp_path, (plugin,)) as world:
        result = world.call(in_process, Command.ADD, "a", IgnoreUnknown="1", IP="10.88.0.77", K8S_POD_NAME="x")
        assert result["ips"][0]["address"] == "10.88.0.77/24"
        assert result["interfaces"][2]["mac"] == "02:00:00:00:00:07"
        with pytest.raises(CniError, match="is not available in range set"):
            world.call(in_process, Command.ADD, "b", IP="10.88.0.77")
        with pytest.raises(CniError, match="unknown args"):
            world.call(in_process, Command.ADD, "b", K8S_POD_NAME="x")
        assert leased(world) == ["10.88.0.77"]


def test_find_knows_only_its_own_types() -> None:
    assert find("macvlan", {"name": "n", "cniVersion": "1.0.0", "type": "macvlan"}) is None
