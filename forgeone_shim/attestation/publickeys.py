"""Public keys that images are signed with: what cosign makes and takes, and no weaker ones.

Packages and contracts are signed with fewer kinds (:mod:`forgeone_shim.attestation.keys`); an image's signer may be
anybody. https://github.com/sigstore/architecture-docs/blob/main/algorithm-registry.md
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from forgeone_shim.attestation.signed import Signed, Unverified
from forgeone_shim.errors import FailedPrecondition

Known = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey

MIN_RSA: Final = 2048
HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
# The registry gives larger curves larger hashes; cosign's older signatures are over SHA-256 whatever the curve.
_CURVES: Final[dict[str, tuple[str, ...]]] = {
    "secp256r1": ("sha256",),
    "secp384r1": ("sha384", "sha256"),
    "secp521r1": ("sha512", "sha256"),
}


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key and the hashes it may sign. ``id`` is ``sha256:`` and the hash of its DER form."""

    id: str
    der: bytes = field(repr=False)
    _key: Known = field(repr=False, compare=False)
    _hashes: tuple[str, ...] = ()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the owner of this key signed these bytes."""
        if isinstance(self._key, ed25519.Ed25519PublicKey):
            try:
                self._key.verify(signature, message)
            except InvalidSignature:
                return False
            return True
        return any(self._verifies(signature, message, HASHES[name]) for name in self._hashes)

    def verifies_digest(self, signature: bytes, digest: bytes) -> bool:
        """The same where only the SHA-256 of the bytes is known; Ed25519 cannot do that."""
        if len(digest) != sha256().digest_size or "sha256" not in self._hashes:
            return False
        return self._verifies(signature, digest, utils.Prehashed(hashes.SHA256()))

    def signed(self, this: Signed) -> bool:
        """Whether the owner of this key made this signature."""
        # One hash for all keys: a message may be large, and has as many signatures as somebody wrote below it.
        if self.verifies_digest(this.signature, this.digest):
            return True
        if this.message is None or self._hashes == ("sha256",):
            return False
        return self.verifies(this.signature, this.message)

    def _verifies(self, signature: bytes, data: bytes, algorithm: hashes.HashAlgorithm | utils.Prehashed) -> bool:
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, data, ec.ECDSA(algorithm))
            elif isinstance(self._key, rsa.RSAPublicKey):
                self._key.verify(signature, data, padding.PKCS1v15(), algorithm)
            else:
                return False
        except InvalidSignature:
            return False
        return True


def read(pem: bytes, name: str, hash_: str = "") -> VerifyingKey:
    """The key of a PEM text (RFC 7468 section 13).

    :param hash_: the only hash it signs, one of :data:`HASHES`; ``""``: what is usual for its kind.
    :raises FailedPrecondition: it is not one public key, or of a kind that nothing is verified with.
    """
    if pem.count(b"-----BEGIN") != 1 or b"-----BEGIN PUBLIC KEY-----" not in pem:
        raise FailedPrecondition(f"{name}: not one public key in PEM form")
    try:
        key = serialization.load_pem_public_key(pem.strip())
    except (ValueError, UnsupportedAlgorithm):
        raise FailedPrecondition(f"{name}: not a public key in PEM form") from None
    try:
        return of(key, hash_)
    except Unverified as error:
        raise FailedPrecondition(f"{name}: {error.what}") from None


def of(key: object, hash_: str = "") -> VerifyingKey:
    """A key that ``cryptography`` has read, from a certificate for example. :raises Unverified: a kind not taken."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        names: tuple[str, ...] = ()
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        names = _CURVES[key.curve.name]
    elif isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA:
        names = ("sha256",)
    else:
        raise Unverified(
            f"the key is neither Ed25519, nor ECDSA on P-256, P-384 or P-521, nor RSA of {MIN_RSA} bits or more"
        )
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return VerifyingKey(f"sha256:{sha256(der).hexdigest()}", der, key, (hash_,) if hash_ and names else names)


def of_der(der: bytes) -> VerifyingKey:
    """The key of a SubjectPublicKeyInfo. :raises Unverified: it is none, or of a kind not taken."""
    try:
        return of(serialization.load_der_public_key(der))
    except (ValueError, UnsupportedAlgorithm):
        raise Unverified("not a public key in DER form") from None
