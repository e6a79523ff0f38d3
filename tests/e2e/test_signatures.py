"""Images that somebody must stand behind: pulled or refused, judged again when a container is made, on both engines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.config.loader import to_toml
from forgeone_shim.package import file as packages
from forgeone_shim.package import project
from forgeone_shim.package.manifest import REGISTRY
from hack.lab import images, modules
from hack.lab.daemon import Daemon
from hack.lab.guests import arguments, guest
from hack.lab.registry import Registry
from hack.lab.settings import patient
from hack.lab.signatures import SLSA, Signer
from tests.e2e.conftest import Push, running_daemon
from tests.e2e.pods import Pod
from tests.e2e.wasm_pods import HANDLER, WasmPod

pytestmark = pytest.mark.root

Factory = Callable[..., Daemon]
ALICE, BOB = Signer(), Signer()
MODULE = guest(arguments())


@dataclass(frozen=True)
class Trust:
    """A node's policies about images, as files."""

    directory: Path
    registry: str

    def write(self, name: str = "policy.json", **scopes: Signer | None) -> Path:
        """Images below a repository must be signed; ``None``: they are rejected. Anything else is welcome."""
        rules = {}
        for scope, signer in scopes.items():
            rule: dict[str, object] = {"type": "reject"}
            if signer is not None:
                key = self.directory / f"{signer.id[-8:]}.pub"
                key.write_bytes(signer.pem)
                rule = {
                    "type": "sigstoreSigned",
                    "keyPath": str(key),
                    "signedIdentity": {"type": "matchRepository"},
                }
            rules[f"{self.registry}/{scope}"] = [rule]
        path = self.directory / name
        path.parent.mkdir(exist_ok=True, mode=0o755)
        path.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": rules}}))
        return path


@pytest.fixture
def trust(tmp_path: Path, registry: Registry) -> Trust:
    directory = tmp_path / "trust"
    directory.mkdir(mode=0o755)
    return Trust(directory, registry.address)


@pytest.fixture(scope="module")
def trusting(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Trusts Alice below ``signed``, and Bob there for pods of one namespace."""
    directory = tmp_path_factory.mktemp("trust")
    directory.chmod(0o755)
    trust = Trust(directory, registry.address)
    trust.write("namespaces/strict.json", signed=None)
    trust.write("namespaces/bobs.json", signed=BOB)
    settings = {
        "signatures.policy": str(trust.write(signed=ALICE)),
        "signatures.namespaces_dir": str(directory / "namespaces"),
    }
    with running_daemon(registry, settings) as daemon:
        yield daemon


@dataclass(frozen=True)
class Kind:
    """What an engine runs: an image, and the pod that it is in."""

    build: Callable[[str], images.BuiltImage]
    plan: Callable[[Daemon], Pod]
    handler: str = ""


def program(said: str) -> images.BuiltImage:
    return images.busybox(("sh", "-c", f"echo {said}"), [images.Entry("said", said.encode())])


def module(said: str) -> images.BuiltImage:
    return modules.compat(MODULE, Entrypoint=["/app.wasm"], Cmd=[said])


KINDS = {"native": Kind(program, Pod.plan), "wasm": Kind(module, WasmPod.plan, HANDLER)}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def pull(daemon: Daemon, name: str, kind: Kind = KINDS["native"], namespace: str = "tests") -> str:
    request = pb.PullImageRequest(image=pb.ImageSpec(image=name, runtime_handler=kind.handler))
    request.sandbox_config.metadata.namespace = namespace
    return str(daemon.images.PullImage(request, timeout=patient(60)).image_ref)


def refused(daemon: Daemon, name: str, text: str, kind: Kind = KINDS["native"], namespace: str = "tests") -> str:
    """A pull that fails as a kubelet knows it."""
    with pytest.raises(grpc.RpcError, match=text) as caught:
        pull(daemon, name, kind, namespace)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    details = str(caught.value.details())
    assert details.startswith("SignatureValidationFailed: ")
    assert "[audit:" in details
    return details


def create(pod: Pod, name: str, image_id: str, container: str = "main") -> str:
    """CreateContainer as a kubelet asks for it: by the image's id, with what the pod's author wrote."""
    config = pod.container(image_id, name=container)
    del config.command[:]
    config.image.user_specified_image = name
    return pod.create(config)


def said(pod: Pod, name: str, image_id: str, container: str = "main") -> str:
    id_ = create(pod, name, image_id, container)
    pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=patient(60))
    assert pod.wait(id_).exit_code == 0
    return pod.log(id_)


def forge(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "forgeone_shim.cli.main", "--socket", daemon.socket, *words]
    return subprocess.run(argv, check=False, capture_output=True, timeout=120)


def test_only_what_the_right_key_signed_comes_and_runs(
    trusting: Daemon, registry: Registry, push: Push, kind: Kind
) -> None:
    daemon, pod = trusting, kind.plan(trusting).run()
    built = {word: kind.build(word) for word in ("one", "two", "three")}
    names = {word: push(f"signed/{kind.handler}{word}:v1", image) for word, image in built.items()}
    one, two, three = (f"signed/{kind.handler}{word}" for word in built)
    assert "refused by" in refused(daemon, names["one"], "it is not signed", kind)
    # Another key, another image's signature, and a name that is another repository's.
    BOB.sign(registry.address, one, built["one"].digest)
    ALICE.sign(registry.address, two, built["one"].digest)
    ALICE.sign_simply(registry.address, three, built["three"].digest, f"{registry.address}/signed/other")
    refused(daemon, names["one"], "none of the trusted keys", kind)
    refused(daemon, names["two"], "it is not signed", kind)
    refused(daemon, names["three"], "signed/other", kind)
    known = {tag for image in daemon.images.ListImages(pb.ListImagesRequest()).images for tag in image.repo_tags}
    assert not known & {*names.values()}
    # In each of the two ways, the first one behind another's.
    ALICE.sign(registry.address, one, built["one"].digest)
    ALICE.sign_simply(registry.address, two, built["two"].digest, names["two"])
    for word in ("one", "two"):
        assert word in said(pod, names[word], pull(daemon, names[word], kind), word)


def test_an_image_from_before_the_policy_makes_no_container_until_it_is_signed(
    daemon_factory: Factory, registry: Registry, push: Push, trust: Trust
) -> None:
    daemon = daemon_factory()
    built = {name: kind.build("before") for name, kind in KINDS.items()}
    names = {name: push(f"before/{name}:v1", image) for name, image in built.items()}
    pods = {name: kind.plan(daemon).run() for name, kind in KINDS.items()}
    found = {name: pull(daemon, names[name], kind) for name, kind in KINDS.items()}
    policy = trust.write(before=ALICE)
    signatures = replace(daemon.config.signatures, policy=str(policy))
    daemon.config_file.write_text(to_toml(replace(daemon.config, signatures=signatures)))
    answer = forge(daemon, "reload").stdout.decode()
    assert "signatures.policy: changed\nsignature policies: changed\n" in answer
    # One that cannot be read is refused whole, and what was read stays.
    policy.write_text('{"default": [{"type": "insecureAcceptAnythin"}]}')
    done = forge(daemon, "reload")
    assert (done.returncode, b"policy.json" in done.stderr) == (1, True)
    for name, pod in pods.items():
        with pytest.raises(grpc.RpcError, match=r"refused by .*it is not signed.*audit:") as caught:
            create(pod, names[name], found[name])
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        ALICE.sign(registry.address, f"before/{name}", built[name].digest)
        assert "before" in said(pod, names[name], found[name])
    # Kept since: a forgeoned that comes back needs no registry for it.
    daemon.kill()
    trust.write(before=ALICE)
    (daemon.directory / "certs.d" / registry.address / "hosts.toml").write_text('server = "http://127.0.0.1:9"\n')
    daemon.start()
    for name, pod in pods.items():
        assert "before" in said(pod, names[name], found[name], "again")


def test_a_namespace_has_a_policy_of_its_own(trusting: Daemon, registry: Registry, push: Push) -> None:
    built = program("shared")
    name = push("signed/shared:v1", built)
    ALICE.sign(registry.address, "signed/shared", built.digest)
    image = pull(trusting, name, namespace="any")
    refused(trusting, name, "none of the trusted keys", namespace="bobs")
    refused(trusting, name, r"refused by .*strict.json", namespace="strict")
    pod = Pod.plan(trusting)
    pod.config.metadata.namespace = "bobs"
    with pytest.raises(grpc.RpcError, match="none of the trusted keys"):
        create(pod.run(), name, image)
    # Nor as a volume of a container that may be there.
    free = push("free/beside:v1", program("beside"))
    config = pod.container(pull(trusting, free), name="beside")
    config.image.user_specified_image = free
    config.mounts.append(pb.Mount(container_path="/data", readonly=True, image=pb.ImageSpec(image=name)))
    with pytest.raises(grpc.RpcError, match=r"signed/shared:v1: refused by .*bobs.json"):
        pod.create(config)
    del config.mounts[:]
    pod.create(config)


def test_who_signed_is_what_a_contract_policy_sees(
    daemon_factory: Factory, registry: Registry, push: Push, trust: Trust, tmp_path: Path
) -> None:
    """A floor that demands verified images holds for images that no signature policy is about."""
    floors, keys = tmp_path / "policies.d", tmp_path / "keys.d"
    for directory in (floors, keys):
        directory.mkdir(mode=0o755)
    (floors / "floor.yaml").write_text(
        "apiVersion: forgeone.dev/v1\nkind: ZTAPolicy\nmetadata: {name: floor}\n"
        "spec: {floor: true, requireVerifiedImage: true}\n"
    )
    key = SigningKey.generate()
    (keys / "it.pub").write_bytes(key.public.pem())
    daemon = daemon_factory(
        {
            "signatures.policy": str(trust.write(floor=ALICE)),
            "contract.policies_dir": str(floors),
            "packages.trusted_keys": str(keys),
        }
    )
    unsigned, signed = program("unsigned"), program("signed")
    names = [push("free/app:v1", unsigned), push("floor/app:v1", signed)]
    ALICE.sign(registry.address, "floor/app", signed.digest)
    ALICE.sign(registry.address, "floor/app", signed.digest, SLSA)
    pod = Pod.plan(daemon).run()
    with pytest.raises(grpc.RpcError, match="nobody who is trusted has signed"):
        create(pod, names[0], pull(daemon, names[0]))
    assert "signed" in said(pod, names[1], pull(daemon, names[1]))
    (tmp_path / "it.wasm").write_bytes(MODULE)
    made = project.Project(name="acme/logger", version="1.2.0", module=tmp_path / "it.wasm")
    package = packages.build(made, tmp_path / "logger.forgepkg", key).path
    done = forge(daemon, "images", "import", str(package))
    assert done.returncode == 0, done.stderr
    image = pb.ImageSpec(image=f"{REGISTRY}/acme/logger:1.2.0", runtime_handler=HANDLER)
    found = daemon.images.ImageStatus(pb.ImageStatusRequest(image=image), timeout=patient(30)).image.id
    said(WasmPod.plan(daemon).run(), image.image, found)


def test_programs_that_verify_are_asked_at_the_pull_and_once_a_life_of_forgeoned(
    daemon_factory: Factory, push: Push, tmp_path: Path
) -> None:
    programs = tmp_path / "verifiers"
    programs.mkdir(mode=0o755)
    house = programs / "house"
    house.write_text(
        f'#!/bin/sh\necho "$2" >> {tmp_path}/asked\ncase "$2" in *bad*) echo no such author; exit 1; esac\n'
    )
    house.chmod(0o755)
    daemon = daemon_factory({"signatures.verifiers_dir": str(programs)})
    bad, good = (push(f"verified/{word}:v1", program(word)) for word in ("bad", "good"))
    refused(daemon, bad, "refused by house: no such author")
    image = pull(daemon, good)
    pod = Pod.plan(daemon).run()
    assert "good" in said(pod, good, image)
    assert (tmp_path / "asked").read_text().split() == [bad, good]
    # Emptied by mistake it refuses everything, and not nothing.
    house.unlink()
    refused(daemon, good, "it is empty")


def test_forge_verify_says_what_a_node_would(trusting: Daemon, registry: Registry, push: Push) -> None:
    built = program("verify")
    name = push("signed/verify:v1", built)
    config = ["--config", str(trusting.config_file)]
    done = forge(trusting, "verify", *config, name)
    assert (done.returncode, b"it is not signed" in done.stderr) == (1, True)
    ALICE.sign(registry.address, "signed/verify", built.digest)
    ALICE.sign(registry.address, "signed/verify", built.digest, SLSA)
    done = forge(trusting, "verify", "-o", "json", *config, name)
    report = json.loads(done.stdout)
    assert (report["signers"], report["digest"]) == ([ALICE.id], built.digest)
    assert report["attestations"] == [{"predicateType": SLSA, "signer": ALICE.id}]
