"""Signs images in a registry as cosign does: bundles as referrers, and the ``.sig`` and ``.att`` tags of before them.

Registries here have no referrers API; the tag that stands in for it is kept as clients keep it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import urllib3
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hack.lab import images

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGN = "https://sigstore.dev/cosign/sign/v1"
SLSA = "https://slsa.dev/provenance/v1"
_PROVENANCE = {"buildDefinition": {"buildType": "make"}, "runDetails": {"builder": {"id": "here"}}}
_SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
_DSSE = "application/vnd.dsse.envelope.v1+json"
_IN_TOTO = "application/vnd.in-toto+json"
_EMPTY = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True)
class Signer:
    """Somebody with a key of his own."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def pem(self) -> bytes:
        """The public key."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def id(self) -> str:
        """What the signer is called by whoever has verified a signature."""
        der = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return f"key:{images.digest(der)}"

    def bundle(self, digest: str, predicate_type: str = SIGN) -> bytes:
        """That an image is signed, or has what else is attested of it."""
        said = {"mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": ""}}}
        return json.dumps({**said, "dsseEnvelope": self._envelope(digest, predicate_type)}).encode()

    def sign(self, registry: str, repository: str, digest: str, predicate_type: str = SIGN) -> None:
        """Say so beside the image."""
        refer(registry, repository, digest, BUNDLE, self.bundle(digest, predicate_type))

    def sign_simply(self, registry: str, repository: str, digest: str, reference: str) -> None:
        """Sign by a ``.sig`` tag; ``reference`` is the name that the signature is for."""
        payload = json.dumps(
            {
                "critical": {
                    "identity": {"docker-reference": reference},
                    "image": {"docker-manifest-digest": digest},
                    "type": "cosign container image signature",
                },
                "optional": None,
            }
        ).encode()
        notes = {"dev.cosignproject.cosign/signature": self._signature(payload)}
        put(registry, repository, f"{digest.replace(':', '-')}.sig", _SIMPLE, payload, notes=notes)

    def attest_simply(self, registry: str, repository: str, digest: str, predicate_type: str = SLSA) -> None:
        """Attest something by an ``.att`` tag."""
        data = json.dumps(self._envelope(digest, predicate_type)).encode()
        put(registry, repository, f"{digest.replace(':', '-')}.att", _DSSE, data)

    def _envelope(self, digest: str, predicate_type: str) -> dict[str, object]:
        payload = json.dumps(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}}],
                "predicateType": predicate_type,
                "predicate": _PROVENANCE if predicate_type == SLSA else {},
            }
        ).encode()
        signed = b"DSSEv1 %d %b %d %b" % (len(_IN_TOTO), _IN_TOTO.encode(), len(payload), payload)
        return {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _IN_TOTO,
            "signatures": [{"sig": self._signature(signed)}],
        }

    def _signature(self, data: bytes) -> str:
        return base64.b64encode(self.key.sign(data, ec.ECDSA(hashes.SHA256()))).decode()


def refer(registry: str, repository: str, digest: str, media_type: str, data: bytes) -> None:
    """Push an artifact of one blob that is about the manifest of this digest."""
    subject = {"mediaType": images.OCI_MANIFEST, "digest": digest, "size": 1}
    manifest = put(registry, repository, "", media_type, data, artifactType=media_type, subject=subject)
    tag = digest.replace(":", "-")
    with urllib3.PoolManager(retries=False) as http:
        url = f"http://{registry}/v2/{repository}/manifests/{tag}"
        answer = http.request("GET", url, headers={"Accept": images.OCI_INDEX})
        known = json.loads(answer.data)["manifests"] if answer.status == 200 else []
        entry = {
            "mediaType": images.OCI_MANIFEST,
            "digest": images.digest(manifest),
            "size": len(manifest),
            "artifactType": media_type,
        }
        index = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [*known, entry]}
        text = json.dumps(index).encode()
        images.put_manifest(http, registry, repository, tag, manifest=text, media_type=images.OCI_INDEX)


def put(
    registry: str,
    repository: str,
    tag: str,
    media_type: str,
    data: bytes,
    *,
    notes: Mapping[str, str] | None = None,
    **top: object,
) -> bytes:
    """Push a manifest of one typed blob under a tag, or by its digest; returns it."""
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": images.OCI_MANIFEST,
            "config": images.descriptor(b"{}", _EMPTY),
            "layers": [{**images.descriptor(data, media_type), "annotations": dict(notes or {})}],
            **top,
        }
    ).encode()
    with urllib3.PoolManager(retries=False) as http:
        for blob in (b"{}", data):
            images.push_blob(http, registry, repository, blob)
        name = tag or images.digest(manifest)
        images.put_manifest(http, registry, repository, name, manifest=manifest, media_type=images.OCI_MANIFEST)
    return manifest
