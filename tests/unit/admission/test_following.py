"""What is known of the cluster follows it, and what cannot be used leaves what was there."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cri.admission import api, following, review
from cri.admission.following import Following
from cri.admission.known import Known
from cri.admission.metrics import Metrics
from cri.admission.options import Options
from cri.admission.service import Caller, Service
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.cluster import objects
from forgeone_shim.contract.parse import PREFIX
from forgeone_shim.errors import FailedPrecondition
from hack.lab.api import ApiDouble, served
from tests.unit.admission.test_review import question

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
ISSUERS = f"{api.configmaps('forgeone-system')}/issuers"


def policy(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": objects.API_VERSION, "kind": objects.KIND, "metadata": {"name": name}, "spec": spec}


class Seen:
    """What reviews would be decided by."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.known: Known | None = None
        self.missing: list[frozenset[str]] = []

    def use(self, known: Known) -> None:
        with self.changed:
            self.known = known
            self.changed.notify_all()

    def lacks(self, missing: frozenset[str]) -> None:
        with self.changed:
            self.missing.append(missing)
            self.changed.notify_all()

    def until(self, holds: Callable[[Known], bool]) -> Known:
        with self.changed:
            assert self.changed.wait_for(lambda: self.known is not None and holds(self.known), 10)
            assert self.known is not None
            return self.known

    def names(self) -> Callable[[Known], list[str]]:
        return lambda known: [one.name for one in known.certain.all]


@contextmanager
def followed(kubeconfig: str, **of: Any) -> Iterator[tuple[Seen, Metrics]]:
    seen, meters = Seen(), Metrics()
    one = Following(
        api.Cluster(kubeconfig), Options(handlers={}, issuers="issuers", **of), seen.use, seen.lacks, meters
    )
    one.start()
    try:
        yield seen, meters
    finally:
        one.stop()


@pytest.fixture
def double(tmp_path: Path) -> Iterator[tuple[ApiDouble, str]]:
    with served(tmp_path) as (found, kubeconfig):
        found.put(f"{following.CLASSES}/strong", {"handler": "forgeone-microvm"})
        found.put(f"{following.POLICIES}/gold", policy("gold", contract={"exec_mode": "microvm"}))
        found.put(ISSUERS, {"data": {"one.pub": KEY.public.pem().decode(), "README": "no key"}})
        yield found, kubeconfig


def names(known: Known) -> list[str]:
    return [one.name for one in known.certain.all]


def test_nothing_is_known_before_all_of_it_is(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    with followed(kubeconfig) as (seen, _):
        known = seen.until(lambda known: True)
        assert names(known) == ["gold"]
        assert known.classes == {"strong": "forgeone-microvm"}
        assert [key.id for key in known.certain.issuers] == [KEY.public.id]
        with seen.changed:
            assert seen.changed.wait_for(lambda: seen.missing[-1] == frozenset(), 10)
        assert seen.missing[0] == {"runtimeclasses", "policies", "issuers"}
        del found


def test_changes_count_as_they_come(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    asked = json.dumps(question({f"{PREFIX}runtime_policy_id": "silver"})).encode()
    with followed(kubeconfig) as (seen, _):
        assert not review.validate(asked, seen.until(lambda known: True)).allowed
        found.put(f"{following.POLICIES}/silver", policy("silver"))
        assert review.validate(asked, seen.until(lambda known: "silver" in names(known))).allowed
        found.drop(f"{following.POLICIES}/silver")
        assert not review.validate(asked, seen.until(lambda known: "silver" not in names(known))).allowed
        found.put(f"{following.CLASSES}/plain", {"handler": "forgeone-native"})
        assert seen.until(lambda known: len(known.classes) == 2).runtime_class("native") == "plain"
        found.put(ISSUERS, {"data": {"two.pem": OTHER.public.pem().decode()}})
        seen.until(lambda known: [key.id for key in known.certain.issuers] == [OTHER.public.id])
        found.drop(ISSUERS)
        seen.until(lambda known: known.certain.issuers == ())


def test_what_cannot_be_used_leaves_what_was_there(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    with followed(kubeconfig) as (seen, meters):
        seen.until(lambda known: True)
        found.put(f"{following.POLICIES}/gold", policy("gold", contract={"exce_mode": "wasm"}))
        found.put(ISSUERS, {"data": {"one.pub": "no key"}})
        found.put(f"{following.POLICIES}/last", policy("last"))
        known = seen.until(lambda known: "last" in names(known))
        assert names(known) == ["gold", "last"]
        assert known.certain.all[0].contract.exec_mode == "microvm"
        assert [key.id for key in known.certain.issuers] == [KEY.public.id]
        assert b'forgeone_admission_unusable{what="policies"} 1.0' in meters.text()
        # Mended, it counts.
        found.put(f"{following.POLICIES}/gold", policy("gold", contract={"exec_mode": "wasm"}))
        seen.until(lambda known: known.certain.all[0].contract.exec_mode == "wasm")


def test_an_object_that_no_reader_takes_keeps_no_other_from_being_known(
    double: tuple[ApiDouble, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, kubeconfig = double
    read = objects.policy_of

    def odd(given: Any) -> Any:
        if given["metadata"]["name"] == "odd":
            raise TypeError("odd")
        return read(given)

    monkeypatch.setattr(objects, "policy_of", odd)
    found.put(f"{following.POLICIES}/odd", policy("odd"))
    with followed(kubeconfig) as (seen, meters):
        assert names(seen.until(lambda known: True)) == ["gold"]
        assert b'forgeone_admission_unusable{what="policies"} 1.0' in meters.text()


def test_more_than_one_page_is_one_list(double: tuple[ApiDouble, str], monkeypatch: pytest.MonkeyPatch) -> None:
    found, kubeconfig = double
    monkeypatch.setattr(api, "PAGE", 2)
    for number in range(7):
        found.put(f"{following.POLICIES}/p{number}", policy(f"p{number}"))
    with followed(kubeconfig) as (seen, _):
        assert len(names(seen.until(lambda known: True))) == 8


def test_a_cluster_that_refuses_leaves_it_waiting(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    found.refused[following.POLICIES] = 403
    with followed(kubeconfig) as (seen, meters):
        with seen.changed:
            assert seen.changed.wait_for(lambda: seen.missing[-1] == {"policies"}, 10)
        assert seen.known is None
        while b'interruptions_total{what="policies"}' not in meters.text():
            threading.Event().wait(0.01)
    with followed(kubeconfig, policies=False) as (seen, _):
        assert names(seen.until(lambda known: True)) == []


def test_without_an_api_server_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="the API server is not known"):
        api.Cluster()
    with pytest.raises(FailedPrecondition, match="the API server is not known"):
        api.Cluster(str(tmp_path / "none"))


def test_a_server_that_is_gone_without_a_word_is_noticed(double: tuple[ApiDouble, str]) -> None:
    _, kubeconfig = double
    for event in api.Cluster(kubeconfig).watch(following.POLICIES, {"resourceVersion": "0"}):
        found = [fd for fd in os.listdir("/proc/self/fd") if _keeps_alive(int(fd))]
        assert event
        assert found
        break


def _keeps_alive(fd: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(fd)) as one:
            return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    except OSError:
        return False


def test_a_policy_that_was_just_made_is_looked_for(
    double: tuple[ApiDouble, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, kubeconfig = double
    seen, meters = Seen(), Metrics()
    # Nothing is followed: as if no event had come yet.
    one = Following(api.Cluster(kubeconfig), Options(handlers={}), seen.use, seen.lacks, meters)
    answering = Service(meters)
    answering.follow(Known())
    body = json.dumps(question({f"{PREFIX}runtime_policy_id": "gold"})).encode()
    filling = json.dumps(question({f"{PREFIX}runtime_policy_id": "last"})).encode()

    def allowed(data: bytes = body) -> bool:
        response = answering.respond("POST", "/validate", data, Caller())
        return bool(json.loads(response.body)["response"]["allowed"])

    assert not allowed()
    answering.asking(one.look_for)
    asked: list[str] = []
    read = api.Cluster.read
    monkeypatch.setattr(
        api.Cluster, "read", lambda self, path, seconds=1.0: asked.append(path) or read(self, path, seconds)
    )
    # It demands a machine, which is told as if it had been known.
    assert not allowed()
    assert asked == [f"{following.POLICIES}/gold"]
    found.put(f"{following.POLICIES}/last", policy("last"))
    assert allowed(filling)
    # Not for every pod that names one that is not there.
    missing = json.dumps(question({f"{PREFIX}runtime_policy_id": "none"})).encode()
    assert not allowed(missing)
    assert not allowed(missing)
    assert asked.count(f"{following.POLICIES}/none") == 1
