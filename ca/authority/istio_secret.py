"""The state of the authority as the data of the secret `istio-ca-secret`, where Istio's own CA keeps its root.

    ca-cert.pem, ca-key.pem        the issuer that signs; the key is empty where it is kept elsewhere
    cert-chain.pem, root-cert.pem  from the issuer to below the root (empty for a self-signed one); the roots
    authority-state.json           all of `AuthorityState`, except the key that is in `ca-key.pem`

Pure: every replica reads the same state from the same data. A secret that Istio's CA made holds only the first four
keys, or the first two, and is adopted as it is. If such a CA runs beside us and has put another issuer there (it renews
its root in place, and `root-cert.pem` stays as it was), that issuer signs from then on, and the previous root stays in
the bundle until it ends. Anything else is an error that names the key. It is never taken for an empty secret, for that
would lead to a new root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cryptography import x509

from ca.authority.issuer_files import CACERTS, chained, check_issuer, issued_by
from ca.authority.state import AuthorityState, IssuerState, KeyReference
from istio_auth.errors import ConfigurationError, InvalidPEM, KeyRejected
from istio_auth.keys import PrivateKey
from istio_auth.pem import read_certificates, read_private_key, write_certificates, write_traditional_private_key
from istio_auth.spiffe_id import TrustDomain

STATE = "authority-state.json"


def write_state(state: AuthorityState) -> dict[str, bytes]:
    """The data of a state: every key that `read_state` reads, so that merging it into older data leaves nothing stale.

    Raises:
        ConfigurationError: the issuer that signs has no key.
    """
    issuer = state.active
    if issuer.key is None:
        raise ConfigurationError("the state of the authority can not be kept: its active issuer has no key")
    if isinstance(issuer.key, KeyReference):
        key, beside = b"", state
    else:
        # PKCS#1 or SEC 1 as Citadel and istiod write it: all of their releases read these, PKCS#8 only the later ones.
        key, beside = write_traditional_private_key(issuer.key), replace(state, active=replace(issuer, key=None))
    return {
        CACERTS.certificate: write_certificates((issuer.certificate,)),
        CACERTS.key: key,
        CACERTS.chain: write_certificates(issuer.chain),
        CACERTS.root: write_certificates((issuer.root, *issuer.other_roots)),
        STATE: beside.to_json(),
    }


def read_state(data: Mapping[str, bytes], trust_domain: TrustDomain) -> AuthorityState:
    """The state that is in the data of a secret.

    Args:
        data: the data, by key; unknown keys are ignored.
        trust_domain: whose authority it must be; a certificate of Istio's may name none.

    Raises:
        ConfigurationError: it is damaged, incomplete or another trust domain's; the message names the key.
    """
    remembered = _remembered(data, trust_domain) if STATE in data else None
    if remembered is not None and isinstance(remembered.active.key, KeyReference):
        _check_unchanged(data, remembered.active)
        return remembered
    certificate, *others = _certificates(data, CACERTS.certificate)
    key = _key(data)
    if remembered is not None and certificate == remembered.active.certificate:
        return replace(remembered, active=_with_key(remembered.active, key))
    try:
        issuer, older = _adopted(certificate, others, key, data)
        for one in (issuer, *older):
            check_issuer(one, trust_domain)
    except (ConfigurationError, KeyRejected) as error:
        raise ConfigurationError(f"{CACERTS.certificate} can not be used: {error}") from error
    if remembered is None:
        return AuthorityState(trust_domain, issuer, retired=older)
    return _renewed_beside_us(remembered, issuer)


def _remembered(data: Mapping[str, bytes], trust_domain: TrustDomain) -> AuthorityState:
    try:
        state = AuthorityState.from_json(data[STATE], keyless=True)
    except ConfigurationError as error:
        raise ConfigurationError(f"{STATE}: {error}") from error
    if state.trust_domain != trust_domain:
        raise ConfigurationError(f"{STATE}: it is that of {state.trust_domain}, and this CA is for {trust_domain}")
    if isinstance(state.active.key, KeyReference) or state.active.key is None:
        return state
    raise ConfigurationError(f"{STATE}: it holds the key that belongs into {CACERTS.key}")


def _adopted(
    certificate: x509.Certificate, others: list[x509.Certificate], key: PrivateKey, data: Mapping[str, bytes]
) -> tuple[IssuerState, tuple[IssuerState, ...]]:
    """The issuer that somebody else put there, and its earlier roots if it is self-signed."""
    issuer = _with_key(IssuerState(certificate, certificate), key)
    roots = _certificates(data, CACERTS.root) if data.get(CACERTS.root, b"").strip() else []
    if issued_by(certificate, certificate):
        # Istio's CA renews in place: other certificates in the root file are earlier roots, trusted until they end.
        return issuer, tuple(IssuerState(root, root) for root in dict.fromkeys(roots) if root != certificate)
    chain = _certificates(data, CACERTS.chain) if data.get(CACERTS.chain, b"").strip() else []
    return chained(certificate, [*others, *chain], roots, key), ()


def _renewed_beside_us(remembered: AuthorityState, issuer: IssuerState) -> AuthorityState:
    """The state after somebody else put this issuer into the place of the remembered one."""
    old = remembered.active
    if issuer.self_signed:  # the root file is the one that we wrote before
        issuer = replace(issuer, other_roots=tuple(root for root in old.other_roots if root != issuer.root))
    retired = [one for one in (replace(old, other_roots=()), *remembered.retired) if one.root != issuer.root]
    begin = issuer.certificate.not_valid_before_utc  # not the present instant: all replicas must read the same state
    kept = tuple(one for one in retired if one.root.not_valid_after_utc > begin)
    return replace(remembered, active=issuer, retired=kept, sequence=remembered.sequence + 1)


def _check_unchanged(data: Mapping[str, bytes], issuer: IssuerState) -> None:
    """Make sure that nobody put an issuer of their own beside a plugged-in one, whose key is not here."""
    if data.get(CACERTS.key, b"").strip():
        raise ConfigurationError(
            f"{CACERTS.key} is there, and {STATE} says that a CA is plugged in: remove one of them"
        )
    if _certificates(data, CACERTS.certificate)[0] != issuer.certificate:
        raise ConfigurationError(f"{CACERTS.certificate} is not that of the plugged-in CA that {STATE} remembers")


def _with_key(issuer: IssuerState, key: PrivateKey) -> IssuerState:
    try:
        return replace(issuer, key=key)
    except (ConfigurationError, KeyRejected) as error:
        raise ConfigurationError(f"{CACERTS.key} is not the key of {CACERTS.certificate}: {error}") from error


def _certificates(data: Mapping[str, bytes], name: str) -> list[x509.Certificate]:
    try:
        return list(read_certificates(_present(data, name)))
    except InvalidPEM as error:
        raise ConfigurationError(f"{name}: {error}") from error


def _key(data: Mapping[str, bytes]) -> PrivateKey:
    try:
        return read_private_key(_present(data, CACERTS.key))
    except (InvalidPEM, KeyRejected) as error:
        raise ConfigurationError(f"{CACERTS.key}: {error}") from error


def _present(data: Mapping[str, bytes], name: str) -> bytes:
    if not data.get(name, b"").strip():
        raise ConfigurationError(f"{name} is missing")
    return data[name]
