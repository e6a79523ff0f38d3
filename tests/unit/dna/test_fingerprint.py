from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from engines.base import (
    ContainerPlan,
    ContainerSpec,
    Device,
    Edits,
    Hook,
    HookStage,
    Imprint,
    Mount,
    Namespaces,
    Process,
    Propagation,
    Resources,
    Security,
    User,
)
from forgeone_shim.dna.fingerprint import Difference, Genome, canonical, compare, digest, genome, place
from forgeone_shim.errors import FailedPrecondition

UID = "0b2c1f7e-5f0a-4a0e-9d3c-1c1b1a191817"
IMPRINT = Imprint(version="crun 1.8.1", seal="sha256:1", seccomp="sha256:2", capabilities=("CAP_KILL", "CAP_CHOWN"))


def plan(**changes: Any) -> ContainerPlan:
    spec = ContainerSpec(
        name="main",
        mounts=(Mount("/data", f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/data"),),
        resources=Resources(memory_limit=64 << 20),
    )
    whole = ContainerPlan(
        container_id="c" * 64,
        sandbox_id="5" * 64,
        bundle="/run/c",
        rootfs="/run/c/rootfs",
        exits="/run/exits",
        log_path="",
        hostname="one",
        cgroup="/kubepods/pod1/c",
        process=Process(args=("sh", "-c", "true"), env=("A=1", "SECRET=x"), cwd="/", user=User()),
        namespaces=Namespaces(network="/run/ns/net", ipc="/run/ns/ipc", uts="/run/ns/uts", pid=""),
        pod_mounts=(),
        spec=spec,
        image_id="sha256:abc",
    )
    return replace(whole, **changes)


def made(of: ContainerPlan | None = None, imprint: Imprint = IMPRINT, **more: Any) -> Genome:
    return genome(of or plan(), imprint, **{"engine": "native", "layers": ("sha256:l",), "pod_uid": UID, **more})


def spec(**changes: Any) -> ContainerPlan:
    return plan(spec=replace(plan().spec, **changes))


def process(**changes: Any) -> ContainerPlan:
    return plan(process=replace(plan().process, **changes))


KNOWN = "sha256:7bb92d42585649e031bd1c514361b64995440e1c8b67fe82707c1cf6cd220fb1"
HOOK = Hook(HookStage.CREATE_RUNTIME, "/bin/hook")


@pytest.mark.parametrize(
    ("other", "changed"),
    [
        (made(plan(image_id="sha256:abd")), ["image"]),
        (made(layers=("sha256:l", "sha256:m")), ["layers"]),
        (made(engine="wasm"), ["engine"]),
        (made(imprint=replace(IMPRINT, version="crun 1.9")), ["engine_version"]),
        (made(process(args=("sh", "-c", "false"))), ["argv"]),
        (made(process(cwd="/tmp")), ["cwd"]),
        (made(process(env=("A=1", "SECRET=x", "LD_PRELOAD=/x.so"))), ["env"]),
        (made(process(user=User(uid=1, gid=2, additional_gids=(4, 3)))), ["gid", "groups", "uid"]),
        (made(plan(namespaces=replace(plan().namespaces, network=None))), ["namespaces.network"]),
        (made(spec(mounts=())), ["mounts"]),
        (made(spec(devices=(Device("/dev/a", "/dev/b"),))), ["devices"]),
        (made(spec(security=Security(privileged=True))), ["privileged"]),
        (made(spec(security=Security(no_new_privs=True))), ["no_new_privileges"]),
        (made(spec(security=Security(readonly_rootfs=True))), ["readonly_rootfs"]),
        (made(spec(security=Security(masked_paths=("/proc/kcore",)))), ["masked_paths"]),
        (made(spec(security=Security(readonly_paths=("/proc/sys",)))), ["readonly_paths"]),
        (made(spec(resources=Resources(memory_limit=1))), ["limits.memory_limit"]),
        (made(plan(edits=Edits(hooks=(HOOK,)))), ["edits"]),
        (made(imprint=replace(IMPRINT, capabilities=("CAP_KILL",))), ["capabilities"]),
        (made(imprint=replace(IMPRINT, seccomp="")), ["seccomp"]),
        (made(imprint=replace(IMPRINT, apparmor="x")), ["apparmor"]),
        (made(imprint=replace(IMPRINT, facts={"module": "/a.wasm"})), ["engine_facts.module"]),
        (made(policy="sha256:p"), ["policy"]),
        (made(contract="sha256:c"), ["contract"]),
    ],
)
def test_whatever_decides_what_runs_changes_the_fingerprint(other: Genome, changed: list[str]) -> None:
    assert digest(other) != digest(made())
    found = {name.partition("[")[0] for name in (one.field for one in compare(made(), other))}
    assert found == set(changed)


def test_every_field_of_a_genome_is_in_its_canonical_form() -> None:
    assert set(json.loads(canonical(made()))) == {one.name for one in fields(Genome)}


@pytest.mark.parametrize(
    "same",
    [
        plan(container_id="d" * 64, sandbox_id="6" * 64, bundle="/x", rootfs="/x/r", cgroup="/y", hostname="two"),
        process(env=("SECRET=another", "A=2", "A=1")),
        plan(namespaces=replace(plan().namespaces, network="/run/other/net")),
    ],
)
def test_what_differs_between_replicas_does_not(same: ContainerPlan) -> None:
    assert digest(made(same)) == digest(made())


def test_replicas_mounts_are_told_apart_by_what_they_are_and_not_by_their_pod() -> None:
    other = "c0ffee00-0000-4000-8000-000000000000"
    of = spec(mounts=(replace(plan().spec.mounts[0], source=plan().spec.mounts[0].source.replace(UID, other)),))
    assert digest(made(of, pod_uid=other)) == digest(made())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"/var/lib/kubelet/pods/{UID}/etc-hosts", "/var/lib/kubelet/pods/*/etc-hosts"),
        (f"/var/lib/kubelet/pods/{UID}/containers/main/1a2b3c4d", "/var/lib/kubelet/pods/*/containers/main/*"),
        (
            f"/k/pods/{UID}/volumes/kubernetes.io~projected/kube-api-access-x7k2p",
            "/k/pods/*/volumes/kubernetes.io~projected/kube-api-access-*",
        ),
        ("/srv/data", "/srv/data"),
        ("/srv/kube-api-access-x7k2p-more", "/srv/kube-api-access-x7k2p-more"),
        # Of the host's own files these are different ones.
        ("/srv/kube-api-access-x7k2p", "/srv/kube-api-access-x7k2p"),
        ("/srv/containers/db/1a2b3c4d", "/srv/containers/db/1a2b3c4d"),
        (f"/k/pods/{UID}/volumes/a/containers/b/1a2b3c4d", "/k/pods/*/volumes/a/containers/b/1a2b3c4d"),
        (f"/srv/{UID}x/y", f"/srv/{UID}x/y"),
    ],
)
def test_a_place_has_nothing_in_it_that_is_anew_for_each_pod(source: str, expected: str) -> None:
    assert place(source, UID) == expected


def test_without_a_pod_s_uid_a_place_stays() -> None:
    assert place("/a//b", "") == "/a//b"


def test_a_mount_of_an_image_is_known_by_the_image() -> None:
    mount = Mount("/i", "/run/mounted", image="name", image_ref="sha256:i", image_sub_path="sub")
    assert made(spec(mounts=(mount,))).mounts[0].source == "sha256:i:sub"


def test_the_digest_is_sha_256_over_canonical_json() -> None:
    one = made()
    assert digest(one) == f"sha256:{hashlib.sha256(canonical(one)).hexdigest()}"
    # RFC 8785 of a document of ASCII text and small numbers is what any sorted, tight writer writes.
    plain = json.dumps(json.loads(canonical(one)), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical(one) == plain.encode()


def test_a_known_genome_has_a_known_digest() -> None:
    """So that a change of the format does not pass unnoticed: raise FORMAT with it."""
    assert digest(made()) == KNOWN


def test_numbers_that_readers_of_json_round_are_texts() -> None:
    limits = json.loads(canonical(made(spec(resources=Resources(memory_limit=2**60)))))["limits"]
    assert limits["memory_limit"] == str(2**60)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="no fingerprint"):
        digest(made(process(args=("\ud800",))))


@given(
    st.lists(st.text(st.characters(codec="utf-8")), max_size=4),
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")), max_size=4),
    st.integers(0, 2**63),
)
def test_what_is_hashed_is_canonical_json_whoever_writes_it(
    words: list[str], facts: dict[str, str], memory: int
) -> None:
    limits = Resources(memory_limit=memory, unified=facts, hugepages=(("2MB", memory),))
    one = made(
        plan(
            process=replace(plan().process, args=tuple(words), cwd="".join(words)),
            spec=replace(plan().spec, resources=limits),
        ),
        replace(IMPRINT, facts=facts),
    )
    assert canonical(one) == rfc8785.dumps(json.loads(canonical(one)))


@given(
    st.lists(st.text(st.characters(codec="utf-8")), max_size=4),
    st.lists(st.text(st.characters(codec="utf-8")), max_size=4),
)
def test_two_commands_have_one_fingerprint_only_if_they_are_one(one: list[str], other: list[str]) -> None:
    first, second = made(process(args=tuple(one))), made(process(args=tuple(other)))
    assert (digest(first) == digest(second)) is (one == other)


def test_differences_say_what_was_and_what_is() -> None:
    read_only = spec(mounts=(replace(plan().spec.mounts[0], readonly=True, propagation=Propagation.BIDIRECTIONAL),))
    assert compare(made(), made()) == ()
    assert compare(made(), made(read_only)) == (
        Difference("mounts[/data].propagation", "rprivate", "rshared"),
        Difference("mounts[/data].readonly", before=False, after=True),
    )
    gone = compare(made(), made(spec(mounts=())))
    assert Difference("mounts", None, ()) in gone
    assert Difference("mounts[/data].readonly", before=False, after=None) in gone


@given(*[st.lists(st.builds(Mount, st.sampled_from(["/a", "/b"]), st.sampled_from(["/x", "/y"])), max_size=3)] * 2)
def test_where_no_difference_is_told_there_is_none(one: list[Mount], other: list[Mount]) -> None:
    before, after = made(spec(mounts=tuple(one))), made(spec(mounts=tuple(other)))
    assert (compare(before, after) == ()) is (digest(before) == digest(after))


def test_several_mounts_at_one_place_and_their_order_are_compared() -> None:
    def of(*mounts: tuple[str, str]) -> Genome:
        return made(spec(mounts=tuple(Mount(*one) for one in mounts)))

    assert compare(of(("/a", "/x"), ("/a", "/y")), of(("/a", "/z"), ("/a", "/y"))) == (
        Difference("mounts[/a].source", "/x", "/z"),
    )
    assert compare(of(("/a", "/x"), ("/b", "/y")), of(("/b", "/y"), ("/a", "/x"))) == (
        Difference("mounts", ("/a", "/b"), ("/b", "/a")),
    )


def test_a_genome_survives_being_stored() -> None:
    import msgspec

    one = made()
    assert digest(msgspec.json.decode(msgspec.json.encode(one), type=Genome)) == digest(one)
    assert asdict(one)["image"] == "sha256:abc"
