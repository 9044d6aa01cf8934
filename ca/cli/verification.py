"""Verifies a file or a live server with a trust bundle, against what is expected of it, and gives one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from ca.cli.dial import Seen, look
from ca.cli.facts import certificate_json, certificate_section
from ca.cli.material import STDIN, layout_of, read_bundles, read_chain, read_input
from ca.cli.verdict import Verdict, judge
from istio_auth.authorize import Authorizer, any_id, member_of, one_of
from istio_auth.bundle import JSON
from istio_auth.daemon.output import Fact, Section, Tone
from istio_auth.errors import ConfigurationError
from istio_auth.files import read_secret
from istio_auth.host_port import HostPort
from istio_auth.pem import MAX_KEY_BYTES
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.system_clock import SystemClock

HANDSHAKE_FAILED = "HANDSHAKE_FAILED"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the target should be.

    Args:
        ids: the SPIFFE IDs that are welcome; none means any.
        trust_domain: the trust domain that is welcome, and whose the bundle is.
        now: the instant to judge at.
    """

    ids: tuple[SpiffeID, ...]
    trust_domain: TrustDomain | None
    now: datetime

    @classmethod
    def of(cls, ids: Sequence[str], trust_domain: str, at: datetime | None) -> Expected:
        """What the options of the command say.

        Raises:
            InvalidSpiffeID: one of them is no SPIFFE ID or trust domain.
        """
        wanted = tuple(map(SpiffeID.normalized, ids))
        domains = {spiffe_id.trust_domain for spiffe_id in wanted}
        domain = TrustDomain(trust_domain) if trust_domain else (domains.pop() if len(domains) == 1 else None)
        return cls(wanted, domain, SystemClock().now() if at is None else _utc(at))

    def authorizer(self) -> Authorizer:
        """Who is welcome."""
        if self.ids:
            return one_of(*self.ids)
        return any_id() if self.trust_domain is None else member_of(self.trust_domain)


@dataclass(frozen=True, slots=True)
class Verified:
    """The answer: what was presented, and the verdict on it."""

    target: str
    chain: tuple[x509.Certificate, ...]
    verdict: Verdict
    now: datetime
    seen: Seen | None = None

    def json(self) -> dict[str, JSON]:
        """The answer for scripts."""
        verdict, seen = self.verdict, self.seen
        return {
            "target": self.target,
            "accepted": verdict.accepted,
            "spiffe_id": None if verdict.spiffe_id is None else str(verdict.spiffe_id),
            "fault": verdict.fault,
            "reason": verdict.reason or None,
            "remedy": verdict.remedy or None,
            "tls": None
            if seen is None
            else {"version": seen.version, "cipher": seen.cipher, "protocol": seen.protocol, "refusal": seen.refusal},
            "presented": [certificate_json(one, self.now) for one in self.chain],
        }

    def sections(self) -> list[Section]:
        """The answer for people."""
        total = len(self.chain)
        return [
            *(
                certificate_section(f"presented: certificate {place} of {total}", one, self.now)
                for place, one in enumerate(self.chain, start=1)
            ),
            Section(self.target, [*self._tls_facts(), *self._verdict_facts()]),
        ]

    def _tls_facts(self) -> list[Fact]:
        if self.seen is None or not self.seen.version:
            return []
        words = [self.seen.version, self.seen.cipher, self.seen.protocol]
        return [Fact.of("TLS", ", ".join(word for word in words if word))]

    def _verdict_facts(self) -> list[Fact]:
        if self.verdict.accepted:
            return [Fact.of("accepted", f"yes, as {self.verdict.spiffe_id}", tone=Tone.GOOD)]
        proven = [] if self.verdict.spiffe_id is None else [Fact.of("proven", str(self.verdict.spiffe_id))]
        refused = Fact.of("accepted", "no", tone=Tone.BAD)
        return [*proven, refused, Fact.of("why not", self.verdict.reason), Fact.of("what to do", self.verdict.remedy)]


def verified_chain(source: str, bundle: str, expected: Expected) -> Verified:
    """The answer for a chain in a file, an SVID's folder or standard input.

    Raises:
        ConfigurationError, MalformedError: the chain or the bundle can not be read, or no bundle is named.
    """
    if not bundle and source != STDIN and (folder := Path(source)).is_dir():
        bundle = str(folder / layout_of(folder).root)
    bundles = read_bundles(_named(bundle), expected.trust_domain)
    chain = read_chain(source)
    return Verified(source, chain, judge(chain, bundles, expected.authorizer(), now=expected.now), expected.now)


def verified_server(
    target: str, bundle: str, expected: Expected, *, svid: Path | None, server_name: str, timeout: timedelta
) -> Verified:
    """The answer for a live server.

    Raises:
        ConfigurationError, MalformedError: the address, the bundle or the SVID can not be used.
        NotReady: the server was not reached.
    """
    try:
        address = HostPort.parse(target)
    except ConfigurationError as error:
        raise ConfigurationError(f"{target!r} is neither a file that is there nor a host:port") from error
    bundles = read_bundles(_named(bundle), expected.trust_domain)
    seen = look(address, svid=None if svid is None else _svid(svid), server_name=server_name, timeout=timeout)
    verdict = judge(seen.chain, bundles, expected.authorizer(), now=expected.now)
    if seen.refusal and (verdict.accepted or not seen.chain):
        remedy = "make the server accept this client, or dial the right port"
        verdict = Verdict(verdict.spiffe_id, HANDSHAKE_FAILED, seen.refusal, remedy)
    return Verified(target, seen.chain, verdict, expected.now, seen)


def _named(bundle: str) -> str:
    if not bundle:
        raise ConfigurationError(
            "say what to trust with --trust-bundle FILE; `ca-cli trust-bundle` prints the CA's own"
        )
    return bundle


def _svid(folder: Path) -> X509SVID:
    layout = layout_of(folder)
    return X509SVID.parse(read_input(str(folder / layout.chain)), read_secret(folder / layout.key, MAX_KEY_BYTES))


def _utc(instant: datetime) -> datetime:
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
