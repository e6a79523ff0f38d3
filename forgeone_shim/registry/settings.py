"""What pulls and images go by: the configuration as it was at one moment, with what came of reading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog

from forgeone_shim.attestation.keys import read_trusted
from forgeone_shim.config.model import PackagesConfig, RegistryConfig, SignaturesConfig
from forgeone_shim.errors import ForgeError
from forgeone_shim.package import image as packaged
from forgeone_shim.package import media
from forgeone_shim.package.verification import Trust
from forgeone_shim.registry.fetch import LayerFetcher, Resolved
from forgeone_shim.registry.manifest import Platform
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.vetting import Vetting


@dataclass(frozen=True, slots=True)
class Settings:
    """A pull goes by the same ones from its beginning to its end."""

    config: RegistryConfig
    packages: PackagesConfig
    signatures: SignaturesConfig
    vetting: Vetting | None
    abi: tuple[int, int] | None
    fetcher: LayerFetcher
    platform: Platform

    def trust(self) -> Trust:
        """What is asked of packages, by the keys that are there now."""
        keys = read_trusted(Path(self.packages.trusted_keys))
        return Trust(keys, unsigned=self.packages.unsigned == "allow", abi=self.abi)

    def signers(self, image: Image) -> tuple[str, ...]:
        """Those who signed a package and are trusted still; keys that cannot be read count for nothing."""
        said = packaged.signers(image.annotations) if image.artifact == media.ARTIFACT else ()
        if not said:
            return ()
        try:
            trusted = {f"key:{key.id}" for key in self.trust().keys}
        except ForgeError as error:
            structlog.get_logger("images").warning("keys of packages cannot be used", error=str(error))
            return ()
        return tuple(signer for signer in said if signer in trusted)

    def blob_digests(self, resolved: Resolved) -> tuple[str, ...]:
        """What is kept of an image beside its layers."""
        wanted = resolved.wanted(keep=self.config.keep_blobs)
        return (*resolved.documents, *(layer.blob.digest for layer in wanted if layer.keep))
