#!/usr/bin/env python3
"""What trust costs at a pod's start: a signed contract, policies with rules, a signed image, each step on record.

    python -m hack.bench.trust --rounds 40 --before ../earlier

Starts a registry and forgeoneds of its own, and removes them: one without policies (``plain``), one that demands a
signed contract and a signed image (``strict``), and with ``--before`` one of another checkout, which may know nothing
of all that. Pods are started on them in turn, so that only differences in the same round count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cri.api import runtime_pb2 as pb
from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.config.loader import to_toml
from forgeone_shim.contract.model import PAYLOAD_TYPE
from hack.bench.bench import Pod, Runtime
from hack.lab import images
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.signatures import Signer

STEPS = ("run", "create", "start")
HOUSE = """\
apiVersion: forgeone.dev/v1
kind: ZTAPolicy
metadata: {name: house}
spec:
  floor: true
  requireSignedContract: true
  contract: {rbac: {port_forward: false}}
  rules:
    - {name: no-root-namespace, at: [sandbox], expression: "pod.namespace != 'kube-system'", message: not there}
    - {name: vouched, at: [create, start], expression: "size(image.verified_by) > 0", message: nobody signed it}
    - {name: modest, at: [create, start], expression: "container.memory <= 1073741824", message: too much}
"""
CONTRACT = {
    "trusted_issuers": [],
    "minimum_entropy": 128,
    "profile": {
        "images": [],
        "privileged": False,
        "host_network": False,
        "host_paths": [],
        "resources": {"memory": "1Gi"},
    },
    "rbac": {"exec": False},
}


def main(argv: Sequence[str]) -> int:
    """Run it; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--before", metavar="CHECKOUT", help="of an earlier version, its stubs generated")
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forgeone-bench-")))
        registry = stack.enter_context(Registry(directory / "registry")).address
        built, signer, issuer = images.busybox(), Signer(), SigningKey.generate()
        image = images.push(registry, "bench/busybox:latest", built)
        signer.sign(registry, "bench/busybox", built.digest)
        plain, strict = Daemon([registry]), Daemon([registry], settings=_demands(directory, registry, signer))
        _policies(strict, issuer)
        daemons = {"plain": plain, "strict": strict}
        if options.before:
            daemons = {"before": _earlier(registry, Path(options.before)), **daemons}
        for daemon in daemons.values():
            stack.callback(daemon.close)
            daemon.start()
            stack.callback(daemon.remove_pods)
        runtimes = [Runtime(name, daemon.socket) for name, daemon in daemons.items()]
        for runtime in runtimes:
            runtime.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=image)), timeout=120)
        contract = _contract(registry, signer, issuer)
        began = {}
        for number in range(options.rounds + 1):
            # Whoever is first finds the processor's caches as somebody else left them.
            if number == 1:
                began = {name: _spent(daemon.pid) for name, daemon in daemons.items()}
            turn = number % len(runtimes)
            for runtime in (*runtimes[turn:], *runtimes[:turn]):
                _round(runtime, image, directory, contract if runtime.name == "strict" else "")
        _report(runtimes)
        spent = [f"{(_spent(daemons[name].pid) - began[name]) / options.rounds:.1f} ({name})" for name in daemons]
        print(f"processor time of forgeoned for a pod's whole life: {', '.join(spent)}")
    return 0


def _spent(pid: int) -> float:
    """Milliseconds of processor time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def _round(runtime: Runtime, image: str, logs: Path, contract: str) -> None:
    pod = Pod(runtime, image, str(logs))
    if contract:
        pod.config.annotations["zta.forgeone.dev/contract"] = contract
    for step in STEPS:
        runtime.timed(step, getattr(pod, step))
    pod.down()


def _demands(directory: Path, registry: str, signer: Signer) -> dict[str, object]:
    """A policy of signatures: images of this registry are this signer's."""
    key, policy = directory / "signer.pub", directory / "policy.json"
    key.write_bytes(signer.pem)
    signed = {"type": "sigstoreSigned", "keyPath": str(key), "signedIdentity": {"type": "matchRepository"}}
    policy.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": {registry: [signed]}}}))
    for path in (key, policy):
        path.chmod(0o644)
    return {"signatures.policy": str(policy)}


def _policies(daemon: Daemon, issuer: SigningKey) -> None:
    for name, content in (("policies_dir", HOUSE.encode()), ("issuers_dir", issuer.public.pem())):
        directory = Path(getattr(daemon.config.contract, name))
        directory.mkdir(exist_ok=True)
        (directory / ("house.yaml" if name == "policies_dir" else "issuer.pub")).write_bytes(content)


def _contract(registry: str, signer: Signer, issuer: SigningKey) -> str:
    profile = {**CONTRACT["profile"], "images": [{"repository": f"{registry}/bench/*"}]}  # type: ignore[dict-item]
    document = {**CONTRACT, "trusted_issuers": [signer.id], "profile": profile}
    envelope = dsse.Envelope(PAYLOAD_TYPE, json.dumps(document).encode())
    return dsse.encode(dsse.sign(envelope, issuer)).decode()


def _earlier(registry: str, checkout: Path) -> Daemon:
    """A daemon of that checkout, with those keys of the configuration that it knows."""
    daemon = Daemon([registry], repository=checkout)
    argv = [sys.executable, "-m", "cri.daemon", "--print-config"]
    said = subprocess.run(
        argv, cwd=checkout, env={**os.environ, "FORGEONE_CONFIG": ""}, capture_output=True, check=True
    )
    known = tomllib.loads(said.stdout.decode())
    sections = to_toml(daemon.config).split("\n\n")
    kept = [one for one in sections if not one.startswith("[") or one[1 : one.index("]")] in known]
    daemon.config_file.write_text("\n\n".join(kept))
    return daemon


def _report(runtimes: list[Runtime]) -> None:
    """Milliseconds; the first round, which warms up, is not counted."""
    samples = {one.name: {step: one.samples[step][1:] for step in STEPS} for one in runtimes}
    for each in samples.values():
        each["all"] = [sum(steps) for steps in zip(*(each[step] for step in STEPS), strict=True)]
    print(
        f"{'':8}"
        + "".join(f"{name + ' p25':>14}{'p50':>8}" for name in samples)
        + "   to the first: of the quartiles, p50"
    )
    for step in (*STEPS, "all"):
        first, *others = (each[step] for each in samples.values())
        cells = "".join(
            f"{_quarter(each[step]):14.1f}{statistics.median(each[step]):8.1f}" for each in samples.values()
        )
        # Where others use the host as well, the quartiles are less of what they do.
        apart = [
            f"{_quarter(each) - _quarter(first):+.1f} "
            f"{statistics.median(b - a for a, b in zip(first, each, strict=True)):+.1f} ({name})"
            for name, each in zip(list(samples)[1:], others, strict=True)
        ]
        print(f"{step:8}{cells}   {', '.join(apart)}")


def _quarter(values: list[float]) -> float:
    return statistics.quantiles(values, n=4)[0]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
