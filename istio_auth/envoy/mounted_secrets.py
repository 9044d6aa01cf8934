"""Secrets that Envoy itself reads from mounted files and follows, so that a pod needs no agent.

Envoy watches files only for secrets that came by secret discovery: what stands in the bootstrap itself is read once, at
the start. So two small files, one secret in each, tell Envoy where the mounted files are (`path_config_source`). They
hold no secret and never change. The mounted folder is watched twice: for the files that are told of, and for the small
file itself, so that an Envoy which started before the mounted files were there takes them when they come. A watch is
woken by what is moved into the folder, as Kubernetes does with `..data`, and not by writing in place. What can not be
used leaves Envoy with what it had.

The roots are read by Envoy's SPIFFE validator, whenever a TLS context is made; `trusted_ca` is there for its watch.
Envoy's usual validator keeps roots that it could not use, misses that the old ones came back, and then takes no new
certificate either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from istio_auth.bundle import JSON
from istio_auth.envoy.extension import extension, typed
from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import TrustDomain

CERTIFICATE, ROOTS = "default", "ROOTCA"  # what the secrets are called
_FILES = {CERTIFICATE: "certificate.json", ROOTS: "roots.json"}
_VALIDATOR = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
_SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # the name of a type


@dataclass(frozen=True, slots=True)
class MountedSecrets:
    """Where Envoy finds what it needs, all as absolute paths.

    Args:
        chain: the certificates, leaf first, in PEM.
        key: the private key, in PEM, in the same folder; or the same file, if that holds both.
        roots: the CA certificates of the own trust domain, in PEM.
        told_in: the folder of the two files that tell of the others.

    Raises:
        ConfigurationError: Envoy could not follow them so.
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
        """The names of the two files, and what each says (envoy.service.discovery.v3.DiscoveryResponse).

        Args:
            trust_domain: for whom the roots vouch.
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
        """Where Envoy is told of the secret of this name."""
        path: JSON = {
            "path": str(self.told_in / _FILES[name]),
            "watched_directory": {"path": str(self._folder(name))},
        }
        return {"resource_api_version": "V3", "path_config_source": path}

    def _folder(self, name: str) -> PurePath:
        return (self.chain if name == CERTIFICATE else self.roots).parent


def _told(name: str, kind: str, content: JSON) -> JSON:
    return {"version_info": "1", "resources": [typed(_SECRET, {"name": name, kind: content})]}
