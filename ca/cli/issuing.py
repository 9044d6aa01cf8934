"""Issues as the operator, through the same issuer and issuance log as the CA, and delivers the result."""

from __future__ import annotations

import os
import pwd
import secrets
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.attest import Attested
from ca.authority.authority import Authority, open_authority
from ca.authority.plugged import open_plugged_authority
from ca.authority.store import AuthorityStore
from ca.cli.facts import certificate_json, certificate_section
from ca.cli.state import StateFolder, require_folder
from ca.config import Config
from ca.issuance_log import FileIssuanceLog
from ca.issuer import Issuer, Order, ReservedNames
from ca.registry import Grant
from istio_auth.bundle import JSON, TrustBundle
from istio_auth.daemon.output import Fact, Output, Section, note, print_json, print_sections
from istio_auth.daemon.settings import DEFAULT, Loaded
from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.files import atomic_write
from istio_auth.keys import PrivateKey, new_private_key
from istio_auth.pem import write_certificates, write_private_key
from istio_auth.registration import check_dns_name
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.system_clock import SystemClock
from istio_auth.verify import verify_chain

METHOD = "operator"
STDOUT = "-"
KEY, CHAIN, ROOT = "key.pem", "cert-chain.pem", "root-cert.pem"
_ASK_INSTEAD = "ask the running CA instead: --server HOST:PORT --trust-bundle FILE --token-file FILE"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be issued.

    Raises:
        ConfigurationError: a DNS name is not valid in a certificate.
    """

    spiffe_id: SpiffeID
    key: PrivateKey = field(repr=False)
    ttl: timedelta | None = None
    dns_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.dns_names:
            check_dns_name(name)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was issued, with its key and the roots it verifies under."""

    spiffe_id: SpiffeID
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)
    bundle: TrustBundle

    def files(self) -> dict[str, bytes]:
        """The PEM files by their names."""
        return {
            KEY: write_private_key(self.key),
            CHAIN: write_certificates(self.chain),
            ROOT: self.bundle.to_pem(),
        }


@dataclass(frozen=True, slots=True)
class Place:
    """Where a delivery goes: a folder, or standard output if that is None."""

    folder: Path | None

    @classmethod
    def of(cls, out: str, *, replace: bool) -> Place:
        """The place that was named.

        Raises:
            ConfigurationError: files are there already, and shall not be replaced.
        """
        if out == STDOUT:
            return cls(None)
        folder = Path(out)
        there = [name for name in (KEY, CHAIN, ROOT) if (folder / name).exists()]
        if there and not replace:
            raise ConfigurationError(f"{', '.join(there)} in {folder} would be replaced: if that is meant, use --force")
        return cls(folder)

    def deliver(self, delivery: Delivery, output: Output) -> None:
        """Write the files, readable by us only, and say what was issued; or print it all."""
        now = SystemClock().now()
        files = delivery.files()
        facts: dict[str, JSON] = {"certificate": certificate_json(delivery.chain[0], now)}
        if self.folder is None:
            if output is Output.JSON:
                print_json(facts | {name: content.decode() for name, content in files.items()})
            else:
                print("".join(content.decode() for content in files.values()), end="")
            return
        paths = self._write(files)
        if output is Output.JSON:
            print_json(facts | {"files": {name: str(path) for name, path in paths.items()}})
            return
        certificate = certificate_section("issued", delivery.chain[0], now)
        files_fact = Fact("files", [str(path) for path in paths.values()])
        print_sections([Section(certificate.title, [*certificate.facts, files_fact])])

    def _write(self, files: dict[str, bytes]) -> dict[str, Path]:
        assert self.folder is not None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"can not make the folder {self.folder}: {error.strerror}") from error
        paths = {name: self.folder / name for name in files}
        for name, path in paths.items():
            atomic_write(path, files[name], mode=0o600)
        return paths


def new_key(kind: str) -> PrivateKey:
    """A new key: `p256`, `p384` or `rsa-2048`."""
    if kind == "rsa-2048":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP384R1()) if kind == "p384" else new_private_key()


async def issue_from_store(settings: Loaded[Config], wanted: Wanted) -> Delivery:
    """Issue with the CA in the state folder, as istio-ca would with these settings. A missing CA is made.

    Raises:
        ConfigurationError: it is another trust domain's CA, damaged, or not kept in a folder.
        NotReady: a CA runs on it, or nothing can be signed or recorded.
        NotAuthorized: the identity, or a DNS name, is the CA's own.
        TTLRefused: it shall live longer than the CA allows.
    """
    config = settings.config
    require_folder(config.platform, _ASK_INSTEAD)
    state, clock = StateFolder(config.state_folder), SystemClock()
    store = state.store()
    with ExitStack() as held:
        try:
            held.enter_context(store.hold())
        except NotReady as error:
            raise NotReady(f"{error}; {_ASK_INSTEAD}") from error
        authority = _opened(settings, store, wanted.spiffe_id.trust_domain)
        log = FileIssuanceLog(state.issuance_log, required=config.issuance_log_required)
        held.callback(log.close)
        reserved = ReservedNames.of(authority.trust_domain, config.serving_names)
        issuer = Issuer(authority, config.signing.profile(), log, clock, reserved)
        try:
            issued = await issuer.issue(_order(wanted))
        finally:
            await issuer.close()
    return delivered(issued.certificates(), wanted, authority.bundle)


def delivered(chain: tuple[x509.Certificate, ...], wanted: Wanted, bundle: TrustBundle) -> Delivery:
    """What was issued, after a check that it verifies and is what was wanted.

    Raises:
        VerificationError: it does not verify with the bundle.
        NotReady: it is for another identity or key.
    """
    proven = verify_chain(chain, bundle, SystemClock().now())
    if proven != wanted.spiffe_id or chain[0].public_key() != wanted.key.public_key():
        raise NotReady(f"the CA answered with a certificate for {proven}, or for another key")
    return Delivery(proven, chain, wanted.key, bundle)


def _opened(settings: Loaded[Config], store: AuthorityStore, trust_domain: TrustDomain) -> Authority:
    config, stored = settings.config, store.load()
    domain = _told_domain(settings) if stored is None else stored.value.trust_domain
    if domain not in {None, trust_domain}:
        raise ConfigurationError(
            f"the CA in {config.state_folder} is that of {domain} and vouches for no name of {trust_domain}: "
            "name another --state-folder, or an identity of its own trust domain"
        )
    clock, longest = SystemClock(), config.signing.profile().max_ttl
    if config.authority.folder is not None:
        return open_plugged_authority(config.authority.folder, store, trust_domain, clock, longest_ttl=longest)
    lifetime = config.authority.root_lifetime
    authority = open_authority(store, trust_domain, clock, lifetime=lifetime, longest_ttl=longest)
    if stored is None:
        note(f"a new CA for {trust_domain} was made in {config.state_folder}, as istio-ca does on its first start")
    return authority


def _told_domain(settings: Loaded[Config]) -> TrustDomain | None:
    """The trust domain of a CA that is still to be made; None if nobody has set it, for then the identity decides."""
    told = any(setting.name == "trust_domain" and setting.origin != DEFAULT for setting in settings.settings)
    return settings.config.trust_domain if told else None


def _order(wanted: Wanted) -> Order:
    """The operator's order: whoever can read the CA's key may issue any identity that the issuer does not reserve."""
    uid = os.getuid()
    details = {"uid": str(uid)}
    with suppress(KeyError):  # not every user has a name
        details["user"] = pwd.getpwuid(uid).pw_name
    operator = Attested(SpiffeID.for_ca(wanted.spiffe_id.trust_domain), METHOD, details=details)
    grant = Grant(wanted.spiffe_id, wanted.ttl, wanted.dns_names)
    return Order(grant, wanted.key.public_key(), wanted.ttl, operator, secrets.token_hex(8))
