"""Secrets that Envoy itself reads from mounted files, and reads again when they change, so that a pod needs no agent.

Envoy watches files only for secrets that it learned by secret discovery: files that the bootstrap itself names are read
once, at the start. So two small files, one for each secret, tell Envoy where the mounted files are
(`path_config_source`). They hold nothing secret and never change. Envoy has two watches on the mounted folder. One
reads the mounted files again; the other reads the small file again, so that an Envoy that started before the mounted
files were there takes them when they come. A watch sees what is moved into the folder, as Kubernetes does with
`..data`, but not a write in place. If the new files can not be used, Envoy keeps what it has.

Envoy's SPIFFE validator reads the roots, whenever a TLS context is made; `trusted_ca` is there only for its watch.
Envoy's default validator is not used: it keeps roots that it can not use, does not see that the old ones came back, and
then takes no new certificate either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from istio_auth.bundle import JSON
from istio_auth.envoy.extension import extension, typed
from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import TrustDomain

CERTIFICATE, ROOTS = "default", "ROOTCA"  # the names of the secrets
_FILES = {CERTIFICATE: "certificate.json", ROOTS: "roots.json"}
_VALIDATOR = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
_SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # the name of a type


@dataclass(frozen=True, slots=True)
class MountedSecrets:
    """Where Envoy finds what it needs, all as absolute paths.

    Args:
        chain: the certificates, leaf first, in PEM.
        key: the private key, in PEM, in the same folder; or the same file, if that holds both.
        roots: the CA certificates of the workload's own trust domain, in PEM.
        told_in: the folder of the two small files that tell where the others are.

    Raises:
        ConfigurationError: a path is not absolute, or chain and key are in different folders.
    """

    chain: PurePath
    key: PurePath
    roots: PurePath
    told_in: PurePath

    def __post_init__(self) -> None:
        for path in (self.chain, self.key, self.roots, self.told_in):
            if not path.is_absolute() or ".." in path.parts or not str(path).isprintable():
                raise ConfigurationError(f"{str(path)[:200]!r} is no absolute path: Envoy is to find it from anywhere")
        if self.chain.parent != self.key.parent:
            raise ConfigurationError(
                f"{self.chain} and {self.key} are not in one folder: they could not change at once"
            )

    def files(self, trust_domain: TrustDomain) -> Mapping[str, JSON]:
        """The two small files: their names, and their content (envoy.service.discovery.v3.DiscoveryResponse).

        Args:
            trust_domain: the trust domain of the roots.
        """
        certificate: JSON = {
            "certificate_chain": {"filename": str(self.chain)},
            "private_key": {"filename": str(self.key)},
            "watched_directory": {"path": str(self._folder(CERTIFICATE))},
        }
        bundle: JSON = {"name": trust_domain.name, "trust_bundle": {"filename": str(self.roots)}}
        roots: JSON = {
            "custom_validator_config": extension(
                "envoy.tls.cert_validator.spiffe", _VALIDATOR, {"trust_domains": [bundle]}
            ),
            "trusted_ca": {"filename": str(self.roots)},
            "watched_directory": {"path": str(self._folder(ROOTS))},
        }
        return {
            _FILES[CERTIFICATE]: _told(CERTIFICATE, "tls_certificate", certificate),
            _FILES[ROOTS]: _told(ROOTS, "validation_context", roots),
        }

    def source(self, name: str) -> dict[str, JSON]:
        """The configuration source of the secret with this name."""
        path: JSON = {
            "path": str(self.told_in / _FILES[name]),
            "watched_directory": {"path": str(self._folder(name))},
        }
        return {"resource_api_version": "V3", "path_config_source": path}

    def _folder(self, name: str) -> PurePath:
        return (self.chain if name == CERTIFICATE else self.roots).parent


def _told(name: str, kind: str, content: JSON) -> JSON:
    return {"version_info": "1", "resources": [typed(_SECRET, {"name": name, kind: content})]}
