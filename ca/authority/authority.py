"""Authority: the issuer that signs, the trust bundle that vouches for it, and the renewal of a root of our own.

The state is kept by an `AuthorityStore`; here is one immutable snapshot of it, replaced whole. A self-signed root is
made when, and only when, the store says that there is nothing yet. In the last fifth of its life it is renewed with
the same key and subject: certificates issued before verify under the new root, and those issued after under the old
one, so nobody needs the new root beforehand. The old root stays in the bundle until it ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509

from ca.authority.state import AuthorityState, IssuerState, KeyReference
from ca.authority.store import AuthorityStore, Versioned
from ca.authority.takeover import pruned, reconciled
from ca.certificate.build import self_signed_root
from ca.profile import Validity
from istio_auth.bundle import TrustBundle
from istio_auth.clock import Clock, in_words, whole_seconds
from istio_auth.errors import ConfigurationError, ConflictError, NotReady
from istio_auth.keys import PrivateKey, new_private_key, public_key_of, same_key
from istio_auth.rotation import remaining_share
from istio_auth.spiffe_id import TrustDomain
from istio_auth.subscribers import Subscribers

TEN_YEARS = timedelta(days=3650)
_LAST_SHARE = 0.2
_WARN_BEFORE = timedelta(days=30)
_BACKDATE = timedelta(hours=1)  # so that a clock set back by less than this does not stop a CA on its first day

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ActiveIssuer:
    """The issuer that signs, with its key. The same object as long as nothing about it changes."""

    issuer: IssuerState
    key: PrivateKey = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        """The issuer's own certificate."""
        return self.issuer.certificate

    @property
    def above(self) -> tuple[x509.Certificate, ...]:
        """The certificates above the issuer's, up to the root."""
        return () if self.issuer.self_signed else (*self.issuer.intermediates, self.issuer.root)

    @property
    def validity(self) -> Validity:
        """When the whole chain is valid."""
        return Validity(self.issuer.not_before, self.issuer.not_after)


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot:
    stored: Versioned[AuthorityState]
    active: ActiveIssuer | None  # None if its key is kept elsewhere, and this process does not have it
    bundle: TrustBundle
    root_pem: bytes


class Authority:
    """What vouches for a trust domain. Reading is cheap and safe on any thread; changes block, under a lock.

    Args:
        store: where the state is kept.
        stored: the state as it was loaded.
        key: the key of the active issuer, where the state only refers to it.
        lifetime: how long a renewed root lives.
    """

    def __init__(
        self,
        store: AuthorityStore,
        stored: Versioned[AuthorityState],
        *,
        key: PrivateKey | None = None,
        lifetime: timedelta = TEN_YEARS,
    ) -> None:
        self._store = store
        self._lifetime = lifetime
        self._lock = threading.RLock()
        self._subscribers = Subscribers()
        self._held = () if key is None else (key,)  # the keys to which the state only refers
        self._snapshot = self._taken(stored, None)

    @property
    def state(self) -> AuthorityState:
        """All of the state."""
        return self._snapshot.stored.value

    @property
    def trust_domain(self) -> TrustDomain:
        """The trust domain it vouches for."""
        return self.state.trust_domain

    @property
    def active(self) -> ActiveIssuer:
        """The issuer that signs.

        Raises:
            NotReady: the state only refers to its key, and this process does not have the key.
        """
        if (active := self._snapshot.active) is None:
            raise NotReady(f"the key of the issuer that signs is not known here: it is that of {_where(self.state)}")
        return active

    @property
    def bundle(self) -> TrustBundle:
        """The trust bundle, with its sequence."""
        return self._snapshot.bundle

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that follow a leaf: everything between it and the root."""
        return self.state.active.chain

    @property
    def not_after(self) -> datetime:
        """When the first certificate from issuer to root ends: nothing can be signed from then on."""
        return self.state.active.not_after

    def root_pem(self) -> bytes:
        """The roots as PEM, the same bytes as long as the bundle is the same: clients compare them byte by byte."""
        return self._snapshot.root_pem

    def remaining(self, now: datetime) -> timedelta:
        """How long the authority can still sign; negative when it ended."""
        return self.not_after - now

    def warnings(self, now: datetime, *, longest_ttl: timedelta | None = None) -> tuple[str, ...]:
        """What an operator should hear about the authority's own end, if anything.

        Args:
            now: the present instant.
            longest_ttl: the longest lifetime of a leaf: with less than two of them left, leaves will soon be cut short.
        """
        left, end = self.remaining(now), f"{self.not_after:%F %T} UTC"
        if left <= timedelta():
            return (f"the authority ended {end}: nothing can be signed",)
        if left < _WARN_BEFORE:
            return (f"the authority ends in {in_words(left)}, {end}",)
        if longest_ttl is not None and left < 2 * longest_ttl:
            return (f"the authority ends {end}: certificates of {in_words(longest_ttl)} will soon be cut short",)
        return ()

    def remember(self, longest_ttl: timedelta) -> None:
        """Store that leaves may live so long (`AuthorityState.longest_ttl`). Blocks.

        Raises:
            ConfigurationError, ConflictError, NotReady: the new state could not be kept.
        """
        with self._lock:
            if (state := self.state.granting(longest_ttl)) is not self.state:
                try:
                    self._replace(state)
                except ConflictError:
                    self._load()
                    self._replace(self.state.granting(longest_ttl))

    def renew_if_due(self, now: datetime) -> bool:
        """Renew a self-signed root in the last fifth of its life, and drop old roots that ended. Blocks.

        Returns:
            whether anything changed.

        Raises:
            ConfigurationError, NotReady: the new state could not be kept; the old one stays in use.
        """
        with self._lock:
            state = self._renewed(pruned(self.state, now), now)
            if state is self.state:
                return False
            try:
                self._replace(state)
            except ConflictError:
                return self.reload()  # somebody else was first; whether their state needs a renewal is seen next time
        self._subscribers.tell()
        return True

    def reload(self) -> bool:
        """Take what the store holds by now, and put back what somebody deleted (see `reconciled`). Blocks.

        Returns:
            whether anything changed.

        Raises:
            ConfigurationError, NotReady: it can not be read, or is not ours; the old one stays in use.
        """
        with self._lock:
            if not self._load():
                return False
        self._subscribers.tell()
        return True

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each change, on the thread that made it, until the returned function is called."""
        return self._subscribers.add(changed)

    def _renewed(self, state: AuthorityState, now: datetime) -> AuthorityState:
        old = state.active
        share = remaining_share(old.not_before, old.not_after, now)
        if not old.self_signed or old.key is None or isinstance(old.key, KeyReference) or share >= _LAST_SHARE:
            return state
        root = self_signed_root(
            state.trust_domain, old.key, _root_validity(now, self._lifetime), renews=old.certificate
        )
        if root.not_valid_after_utc <= old.not_after:
            return state
        _log.warning(
            "the root of %s is renewed with the same key: it now ends %s", state.trust_domain, root.not_valid_after_utc
        )
        new = replace(old, certificate=root, root=root)
        kept = (replace(old, key=None, other_roots=()),) if old.not_after > now else ()
        return replace(state, active=new, retired=(*kept, *state.retired), sequence=state.sequence + 1)

    def _load(self) -> bool:
        last, found = self._snapshot.stored, self._store.load()
        if found is None:
            found = self._put_back()
        if found.version == last.version:
            return False
        state = ours(found, self.trust_domain).value
        if (goes_on := reconciled(state, last.value)) is not state:
            _log.error(
                "%s holds another authority, which does not follow from the one that signs: that one goes on, and the "
                "root that was found is trusted beside it",
                self._store.where,
            )
            found = self._store.store(goes_on, expected=found.version)
        self._snapshot = self._taken(found, self._snapshot)
        return True

    def _put_back(self) -> Versioned[AuthorityState]:
        """Store the state again after somebody deleted it: a replica that starts now would make another root."""
        try:
            stored = self._store.store(self.state, expected=None)
        except ConflictError as error:  # another replica was faster
            if (found := self._store.load()) is None:
                raise NotReady(f"the state of the authority is gone, and was not put back: {error}") from error
            return found
        _log.error("the state of the authority was deleted from %s, and is there again", self._store.where)
        return stored

    def _replace(self, state: AuthorityState) -> None:
        stored = self._store.store(state, expected=self._snapshot.stored.version)
        self._snapshot = self._taken(stored, self._snapshot)

    def _hold(self, issuer: IssuerState | None) -> None:
        """Keep the key of this issuer, and the keys at hand of the active and prepared ones; forget all other keys."""
        offered = () if issuer is None or issuer.key is None or isinstance(issuer.key, KeyReference) else (issuer.key,)
        signing = [one for one in (issuer, self.state.active, self.state.prepared) if one is not None]
        self._held = tuple(key for key in (*offered, *self._held) if any(_fits(key, one) for one in signing))
        if self._snapshot.active is None:
            self._snapshot = self._taken(self._snapshot.stored, self._snapshot)

    def _taken(self, stored: Versioned[AuthorityState], last: _Snapshot | None) -> _Snapshot:
        """A snapshot of what was stored. What did not change is the same object as in the last one."""
        issuer, bundle = stored.value.active, stored.value.bundle()
        keys = self._held if issuer.key is None or isinstance(issuer.key, KeyReference) else (issuer.key,)
        key = next((key for key in keys if _fits(key, issuer)), None)
        active = None if key is None else ActiveIssuer(issuer, key)
        if last is None:
            return _Snapshot(stored, active, bundle, bundle.to_pem())
        if active is not None and last.active is not None and last.active.issuer == issuer:
            active = last.active
        if last.bundle == bundle:
            return _Snapshot(stored, active, last.bundle, last.root_pem)
        return _Snapshot(stored, active, bundle, bundle.to_pem())


def open_authority(
    store: AuthorityStore,
    trust_domain: TrustDomain,
    clock: Clock,
    *,
    lifetime: timedelta = TEN_YEARS,
    longest_ttl: timedelta = timedelta(),
) -> Authority:
    """The authority in a store that also holds its key; made, self-signed, if it is certain that none is. Blocks.

    Args:
        store: where it is kept.
        trust_domain: whose authority it must be.
        clock: tells when a new root begins.
        lifetime: how long a new root lives.
        longest_ttl: the longest lifetime of a leaf, to be remembered.

    Raises:
        ConfigurationError: what is stored is damaged, another trust domain's, or a plugged-in CA's.
        NotReady: the store could not be looked at, or written to.
    """
    stored = store.load_or_make(lambda: first_root(trust_domain, clock.now(), lifetime).granting(longest_ttl))
    active = ours(stored, trust_domain).value.active
    if isinstance(active.key, KeyReference):
        raise ConfigurationError(
            f"the key of the authority is kept elsewhere, in {active.key.where}: name its folder with --ca-folder"
        )
    authority = Authority(store, stored, lifetime=lifetime)
    authority.remember(longest_ttl)
    return authority


def first_root(trust_domain: TrustDomain, now: datetime, lifetime: timedelta) -> AuthorityState:
    """The state of an authority with a new root, made now."""
    key = new_private_key()
    root = self_signed_root(trust_domain, key, _root_validity(now, lifetime))
    return AuthorityState(trust_domain, IssuerState(root, root, key=key))


def ours(stored: Versioned[AuthorityState], trust_domain: TrustDomain) -> Versioned[AuthorityState]:
    """What was stored, if it is the authority of this trust domain.

    Raises:
        ConfigurationError: it is another trust domain's.
    """
    if stored.value.trust_domain != trust_domain:
        raise ConfigurationError(
            f"the stored authority is that of {stored.value.trust_domain}, and this CA is configured for {trust_domain}"
        )
    return stored


def _fits(key: PrivateKey, issuer: IssuerState) -> bool:
    return same_key(public_key_of(issuer.certificate), key.public_key())


def _where(state: AuthorityState) -> str:
    return state.active.key.where if isinstance(state.active.key, KeyReference) else "nobody"


def _root_validity(now: datetime, lifetime: timedelta) -> Validity:
    return Validity(whole_seconds(now - min(_BACKDATE, lifetime / 10)), whole_seconds(now + lifetime))
