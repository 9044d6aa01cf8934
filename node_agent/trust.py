"""Whom this node trusts: the bundle that the operator pinned, then those that the CA sent over a connection it proved.

Nothing else ever adds trust: not the roots in an answer of Istio's contract, not a peer. Decisions, in this order:

* At the start, what the CA sent last counts again, as long as the pinned bundle is the one that it grew out of. An
  operator who pins another bundle starts over with that one, unless it is merely an old copy: one with a lower sequence
  than what is held, and with an authority in common.
* A set that the CA sends replaces the one held, whole. Our own trust domain must be in it, with at least one
  authority. Other authorities than those held need a higher sequence; the same ones may come with any, as a CA that
  was restored from a backup sends them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cryptography import x509

from istio_auth.bundle import JSON, BundleSet, TrustBundle
from istio_auth.errors import InvalidBundle, MalformedError
from istio_auth.pem import write_der
from istio_auth.spiffe_id import TrustDomain
from istio_auth.subscribers import Subscribers
from istio_auth.svid import UNREADABLE_EXTENSIONS

_PIN = "pinned_sha256"


class BundleRefused(MalformedError):
    """Bundles that the CA sent and that are not taken; what is held stays."""


@dataclass(frozen=True, slots=True)
class KeptTrust:
    """What is on disk: the bundles, and the pinned bundle that they grew out of."""

    bundles: BundleSet
    pin: str

    @classmethod
    def parse(cls, text: bytes) -> KeptTrust:
        """What `to_json` wrote.

        Raises:
            InvalidBundle, InvalidSpiffeID: it is something else.
        """
        bundles = BundleSet.from_json(text)
        pin = json.loads(text).get(_PIN)
        if not isinstance(pin, str):
            raise InvalidBundle(f"the kept bundles do not say {_PIN}")
        return cls(bundles, pin)

    def to_json(self) -> bytes:
        """A SPIFFE bundle map with one member more."""
        document: dict[str, JSON] = json.loads(self.bundles.to_json())
        return json.dumps({_PIN: self.pin, **document}, indent=2).encode() + b"\n"


def fingerprint(bundle: TrustBundle) -> str:
    """The SHA-256 over the authorities of a bundle, whatever file format they came in."""
    content = hashlib.sha256(str(bundle.trust_domain).encode())
    for der in sorted(map(write_der, bundle.x509_authorities)):
        content.update(hashlib.sha256(der).digest())
    return content.hexdigest()


def read_pin(trust_domain: TrustDomain, text: bytes) -> TrustBundle:
    """The bundle that an operator pinned: a SPIFFE bundle document, or PEM.

    Raises:
        InvalidBundle, InvalidPEM: it is neither, holds no authority, or a certificate that is none.
    """
    is_json = text.lstrip()[:1] == b"{"
    bundle = TrustBundle.from_json(trust_domain, text) if is_json else TrustBundle.from_pem(trust_domain, text)
    if not bundle.x509_authorities:
        raise InvalidBundle(f"the pinned bundle of {trust_domain} has no X.509 authority")
    if not all(map(_is_ca, bundle.x509_authorities)):
        raise InvalidBundle("a certificate in the pinned bundle is no CA's: pin the roots, not what they issued")
    return bundle


def at_start(pinned: TrustBundle, kept: KeptTrust | None) -> KeptTrust:
    """What to trust after a start, or after the pinned bundle was read again."""
    started_over = KeptTrust(BundleSet((pinned,)), fingerprint(pinned))
    if kept is None:
        return started_over
    held = _own(kept.bundles, pinned.trust_domain)
    if held is None:
        return started_over
    if kept.pin == started_over.pin or _is_outdated(pinned, held):
        return kept
    return started_over


def offered(held: BundleSet, offer: Sequence[TrustBundle], trust_domain: TrustDomain) -> BundleSet:
    """The set that the CA's offer makes, our own trust domain first; the one held if nothing is new.

    Raises:
        BundleRefused: the offer is not taken.
    """
    try:
        fresh = BundleSet(tuple(sorted(offer, key=lambda each: (each.trust_domain != trust_domain, each.trust_domain))))
    except InvalidBundle as error:
        raise BundleRefused(str(error)) from error
    own = _own(fresh, trust_domain)
    if own is None or not own.x509_authorities:
        raise BundleRefused(f"the CA sent bundles without an authority for its own {trust_domain}")
    _check_sequence(_own(held, trust_domain), own)
    return held if fresh == held else fresh


class Trust:
    """The bundles that are trusted now. For one event loop.

    Args:
        trust_domain: our own.
        start: what to trust at first.
        keep: puts what changed on disk; called before anybody hears of it.
    """

    def __init__(
        self, trust_domain: TrustDomain, start: KeptTrust, keep: Callable[[KeptTrust], Awaitable[None]]
    ) -> None:
        self.trust_domain = trust_domain
        self._kept = start
        self._keep = keep
        self._subscribers = Subscribers()
        self._changing = asyncio.Lock()

    @property
    def bundles(self) -> BundleSet:
        """All of them, our own trust domain's first."""
        return self._kept.bundles

    @property
    def own(self) -> TrustBundle:
        """Our own trust domain's."""
        return self.bundles.bundle(self.trust_domain)

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each change, until the returned function is called."""
        return self._subscribers.add(changed)

    async def take(self, offer: Sequence[TrustBundle]) -> bool:
        """Take what the CA sent over a connection on which it proved its identity.

        Returns:
            whether something changed.

        Raises:
            BundleRefused: the offer is not taken.
            IstioAuthError: it could not be kept on disk; nothing changed.
        """
        async with self._changing:
            fresh = offered(self.bundles, offer, self.trust_domain)
            return await self._replace(KeptTrust(fresh, self._kept.pin))

    async def pin(self, pinned: TrustBundle) -> bool:
        """Look again at what the operator pinned.

        Returns:
            whether something changed.
        """
        async with self._changing:
            return await self._replace(at_start(pinned, self._kept))

    async def _replace(self, fresh: KeptTrust) -> bool:
        if fresh.bundles == self.bundles and fresh.pin == self._kept.pin:
            return False
        await self._keep(fresh)
        self._kept = fresh
        self._subscribers.tell()
        return True


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *UNREADABLE_EXTENSIONS):
        return False


def _own(bundles: BundleSet, trust_domain: TrustDomain) -> TrustBundle | None:
    return next((each for each in bundles if each.trust_domain == trust_domain), None)


def _is_outdated(pinned: TrustBundle, held: TrustBundle) -> bool:
    """Whether a pinned bundle is an old copy of what is held, and not an operator's new word."""
    if pinned.sequence is None or held.sequence is None or pinned.sequence >= held.sequence:
        return False
    return not set(pinned.x509_authorities).isdisjoint(held.x509_authorities)


def _check_sequence(held: TrustBundle | None, fresh: TrustBundle) -> None:
    if held is None or held.sequence is None or set(fresh.x509_authorities) == set(held.x509_authorities):
        return
    if fresh.sequence is None or fresh.sequence < held.sequence:
        raise BundleRefused(
            f"the bundle's sequence went back from {held.sequence} to {fresh.sequence}, with other authorities: if the "
            "CA was restored from a backup, pin its bundle anew"
        )
    if fresh.sequence == held.sequence:
        raise BundleRefused(f"two different bundles have the sequence {held.sequence}")
