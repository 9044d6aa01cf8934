"""A plugged-in authority: an issuer that somebody else made, followed as it changes.

The store keeps the same state as for a root of our own, with a reference in the place of the key, so that the bundle
sequence grows when the roots change, and replicas agree. The key itself is only in the memory of a process that has
read the files. `ca.authority.takeover` decides which step comes next; here it is taken.

A new root has to reach everybody before anything is signed below it. Either we see to that (`Rollout`), or the
operator does: then an issuer below a root that is not in our bundle yet is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256

from ca.authority.authority import TEN_YEARS, Authority, first_root, ours
from ca.authority.issuer_files import issuer_of
from ca.authority.issuer_source import IssuerFolder, IssuerSource
from ca.authority.state import AuthorityState, IssuerState, KeyReference
from ca.authority.store import AuthorityStore, Versioned
from ca.authority.takeover import Pace, Wait, next_step
from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError, ConflictError, IstioAuthError
from istio_auth.spiffe_id import TrustDomain

# The kubelet brings a changed config map to a pod within its sync period of a minute, up to half of that longer by its
# jitter, and another minute if it caches. Twice that, for programs that read the files late, and for clocks that
# differ. It costs nothing, for the old issuer goes on signing.
SETTLING = timedelta(minutes=5)
_MOST_STEPS = 10  # at one time; a few are needed, but replicas that were offered different issuers would never end
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a new root reaches everybody before anything is signed below it.

    Args:
        published: whether the bundle with this sequence is in every place where it is read. Does not block.
        settling: how long after its publication everybody has read it.
    """

    published: Callable[[int], bool]
    settling: timedelta = SETTLING


_BY_THE_OPERATOR = Rollout(published=lambda _: True, settling=timedelta())


class PluggedAuthority(Authority):
    """An authority whose issuer comes from files. `follow` takes what they say by now.

    Args:
        source: has the files. Without a rollout they must be there; with one, our own root signs until they are there.
        store, stored: as for `Authority`.
        rollout: how a new root reaches everybody; None if the operator sees to that.
        longest_ttl: the longest lifetime of a leaf: the roots of former issuers stay in the bundle for so long.
        lifetime: how long a renewed root of our own lives.
    """

    def __init__(
        self,
        source: IssuerSource,
        store: AuthorityStore,
        stored: Versioned[AuthorityState],
        *,
        rollout: Rollout | None = None,
        longest_ttl: timedelta = timedelta(),
        lifetime: timedelta = TEN_YEARS,
    ) -> None:
        super().__init__(store, stored, lifetime=lifetime)
        self._source = source
        self._rollout = rollout
        self._pace = Pace((rollout or _BY_THE_OPERATOR).settling, longest_ttl)
        self._waiting: Wait | None = None

    @property
    def waiting(self) -> str | None:
        """Why the issuer in the files does not sign yet, or that the files of the one that signs are gone; or None."""
        return None if self._waiting is None else self._waiting.reason

    def warnings(self, now: datetime, *, longest_ttl: timedelta | None = None) -> tuple[str, ...]:
        """What an operator should hear: about the authority's end, its key, and an issuer that waits."""
        found = super().warnings(now, longest_ttl=longest_ttl)
        if self.waiting is None:
            return found
        return (*found, f"the plugged-in CA in {self._source.where}: {self.waiting}")

    def follow(self, now: datetime) -> bool:
        """Read the files again, and take the steps towards what they say that can be taken now. Blocks.

        Returns:
            whether anything changed.

        Raises:
            ConfigurationError: the files can not be used, or nobody has their root and there is no rollout.
            NotReady: files or store could not be looked at, or the new state could not be kept.
                After either, the old issuer stays in use.
        """
        issuer = self._offered(now)
        if self._rollout is None and issuer is not None and issuer.root not in self.bundle.x509_authorities:
            raise ConfigurationError(
                f"the new issuer in {self._source.where} chains to a root that nobody has yet: put that root beside "
                "the old one first, and change the issuer when every consumer has both"
            )
        return self.take(issuer, now)

    def take(self, issuer: IssuerState | None, now: datetime) -> bool:
        """Take the steps towards this issuer that can be taken now. Blocks.

        Args:
            issuer: the issuer, with its key; None if none is plugged in.
            now: the present instant.

        Returns:
            whether anything changed.

        Raises:
            ConfigurationError, NotReady: as for `follow`.
        """
        before, waited = self._snapshot, self.waiting
        try:
            with self._lock:
                self._hold(issuer)
                self._advance(None if issuer is None else _referred(issuer, self._source), now)
            if self.waiting not in (None, waited):
                _log.info("the plugged-in CA in %s: %s", self._source.where, self.waiting)
        finally:
            if changed := self._snapshot is not before:
                self._subscribers.tell()
        return changed

    def _offered(self, now: datetime) -> IssuerState | None:
        files = self._source.files()
        if not files and self._rollout is not None:
            return None
        return issuer_of(files, self._source.where, self.trust_domain, now=now)

    def _advance(self, offered: IssuerState | None, now: datetime) -> None:
        published = (self._rollout or _BY_THE_OPERATOR).published
        for _ in range(_MOST_STEPS):
            state = self.state
            step = next_step(state, offered, now, published=published(state.sequence), pace=self._pace)
            if not isinstance(step, AuthorityState):
                self._waiting = step
                return
            try:
                self._replace(step)
            except ConflictError:
                self._load()  # another replica was first: what comes next is decided on what it did
            else:
                self._report(state, step)
        self._waiting = Wait("the replicas of this CA do not see the same files")

    def _report(self, before: AuthorityState, after: AuthorityState) -> None:
        if after.active != before.active:
            step, issuer = "signs from now on", after.active
        elif after.prepared is not None and after.prepared != before.prepared:
            step, issuer = "will sign when everybody has its root", after.prepared
        else:
            return
        _log.info(
            "the plugged-in CA in %s %s: certificate SHA-256 %s, bundle sequence %d",
            self._source.where,
            step,
            issuer.certificate.fingerprint(SHA256()).hex(),
            after.sequence,
        )


def open_plugged_authority(
    folder: Path, store: AuthorityStore, trust_domain: TrustDomain, clock: Clock, *, longest_ttl: timedelta
) -> PluggedAuthority:
    """The authority whose files are in a folder. Blocks.

    Args:
        folder: where the files are.
        store: keeps the state: the bundle sequence, and the roots of authorities that this one replaced.
        trust_domain: whose authority it must be.
        clock: tells whether the certificates are valid.
        longest_ttl: the longest lifetime of a leaf.

    Raises:
        ConfigurationError: files are missing or can not be used, or the store is another trust domain's.
        NotReady: files or store could not be looked at.
    """
    source, now = IssuerFolder(folder), clock.now()
    issuer = issuer_of(source.files(), source.where, trust_domain, now=now)
    first = AuthorityState(trust_domain, _referred(issuer, source)).granting(longest_ttl)
    stored = ours(store.load_or_make(lambda: first), trust_domain)
    if issuer.root not in stored.value.bundle().x509_authorities:
        _log.warning(
            "the plugged-in CA in %s chains to a root that nobody has yet: whoever is not given the new bundle can not "
            "reach this CA any more",
            folder,
        )
    authority = PluggedAuthority(source, store, stored, longest_ttl=longest_ttl)
    authority.take(issuer, now)
    return authority


def open_shared_authority(
    source: IssuerSource,
    store: AuthorityStore,
    trust_domain: TrustDomain,
    clock: Clock,
    *,
    rollout: Rollout,
    longest_ttl: timedelta,
    lifetime: timedelta = TEN_YEARS,
) -> PluggedAuthority:
    """The authority of replicas that share a store: plugged in, or until then with a root of our own. Blocks.

    A stored authority is opened even when the files can not be used now: the issuer that was active goes on signing
    in every process that has its key, and `AuthorityWatch` tries again.

    Args:
        source: has the files of a plugged-in issuer, or none.
        store: keeps the state.
        trust_domain: whose authority it must be.
        clock: tells the time.
        rollout: how a new root reaches everybody.
        longest_ttl: the longest lifetime of a leaf.
        lifetime: how long a root of our own lives.

    Raises:
        ConfigurationError: what is stored is damaged or another trust domain's; or nothing is, and the files can not
            be used.
        NotReady: the store could not be looked at, or written to; or nothing is stored, and the files could not be
            looked at.
    """

    def first() -> AuthorityState:
        if files := source.files():
            issuer = issuer_of(files, source.where, trust_domain, now=clock.now())
            return AuthorityState(trust_domain, _referred(issuer, source)).granting(longest_ttl)
        return first_root(trust_domain, clock.now(), lifetime).granting(longest_ttl)

    stored = ours(store.load_or_make(first), trust_domain)
    authority = PluggedAuthority(source, store, stored, rollout=rollout, longest_ttl=longest_ttl, lifetime=lifetime)
    try:
        authority.follow(clock.now())
    except IstioAuthError as error:
        _log.error("the plugged-in CA can not be looked at, the authority stays as it is: %s", error)
    return authority


def read_plugged(folder: Path, trust_domain: TrustDomain, now: datetime) -> IssuerState:
    """The issuer in a folder, with its key, after every check. Blocks.

    Raises:
        ConfigurationError: files are missing or can not be used; the message says which and why.
        NotReady: they could not be read.
    """
    source = IssuerFolder(folder)
    return issuer_of(source.files(), source.where, trust_domain, now=now)


def _referred(issuer: IssuerState, source: IssuerSource) -> IssuerState:
    return replace(issuer, key=KeyReference(f"a plugged-in CA in {source.where}"))
