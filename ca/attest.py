"""The Attestor port: who is calling, and how that was proven. Names come from here, never from a CSR.

Every proof that is presented must be valid, and all of them must name the same identity: a caller that sends a good
certificate together with a bad token is confused or hostile, and is refused either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from istio_auth.door import TLSCaller
from istio_auth.errors import NotAuthenticated
from istio_auth.keys import PublicKey
from istio_auth.registration import Selector
from istio_auth.spiffe_id import SpiffeID


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a caller presented: the TLS peer, already verified by the door, and the bearer token, not yet looked at."""

    caller: TLSCaller
    bearer: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Attested:
    """Who called.

    Args:
        spiffe_id: the caller's proven identity.
        method: how it was proven, such as `certificate`, `join-token`, `node-key`, `kubernetes-token`; several joined
            by `+`.
        selectors: what else was observed of the caller.
        details: for the logs: serial of the certificate, id of the token, address. Never a secret.
        single_use: names a proof that is used up before anything is issued on it (see `Attestor.settle`); or empty.
        caller: the caller as the platform's own attestor knows it, for the platform's own registry; or None.
    """

    spiffe_id: SpiffeID
    method: str
    selectors: frozenset[Selector] = frozenset()
    details: Mapping[str, str] = field(default_factory=dict)
    single_use: str = ""
    caller: object = None


class Attestor(Protocol):
    """Tells from the evidence who is calling."""

    async def attest(self, evidence: Evidence) -> Attested:
        """Who is calling, by every proof that was presented. Uses nothing up.

        Raises:
            NotAuthenticated: nothing was presented, a proof is not valid, or two proofs disagree.
            NotAuthorized: it is clear who calls, and this caller is not welcome at all.
            NotReady: a proof could not be checked.
        """
        ...

    async def settle(self, attested: Attested, public_key: PublicKey) -> None:
        """Use up what is good only once. Called after the whole request was checked, before anything is signed.

        Args:
            attested: what `attest` answered.
            public_key: the key in the caller's CSR.

        Raises:
            NotAuthenticated: somebody else was first.
            NotAuthorized: the caller is no longer welcome.
            NotReady: nobody can tell now.
        """
        ...


class Proof(Protocol):
    """Knows one kind of proof."""

    async def examine(self, evidence: Evidence) -> Attested | None:
        """Who is calling by this kind of proof; None if none of this kind was presented (see `Attestor.attest`)."""
        ...

    async def settle(self, attested: Attested, public_key: PublicKey) -> None:
        """Use the proof up, if it is of a kind that can be (see `Attestor.settle`)."""
        ...


class AllProofs:
    """The `Attestor` over several kinds of proof.

    Args:
        certificate: checks the certificate of the TLS peer.
        bearers: check the bearer token; each knows one kind of token.
    """

    def __init__(self, certificate: Proof, bearers: Sequence[Proof] = ()) -> None:
        self._certificate = certificate
        self._bearers = tuple(bearers)

    async def attest(self, evidence: Evidence) -> Attested:
        """Who is calling, by every proof that was presented (see `Attestor`)."""
        by_certificate = await self._certificate.examine(evidence)
        if evidence.bearer is None:
            if by_certificate is None:
                raise NotAuthenticated(f"{evidence.caller} presented neither a certificate nor a token")
            return by_certificate
        by_bearer = await self._by_bearer(evidence)
        return by_bearer if by_certificate is None else agreed(by_certificate, by_bearer)

    async def settle(self, attested: Attested, public_key: PublicKey) -> None:
        """Use up what is good only once (see `Attestor`)."""
        if attested.single_use:
            for proof in self._bearers:
                await proof.settle(attested, public_key)

    async def _by_bearer(self, evidence: Evidence) -> Attested:
        for proof in self._bearers:
            if (attested := await proof.examine(evidence)) is not None:
                return attested
        raise NotAuthenticated(f"{evidence.caller} presented a bearer token of an unknown kind")


def agreed(one: Attested, other: Attested) -> Attested:
    """The caller by two proofs that agree.

    Raises:
        NotAuthenticated: they name different identities.
    """
    if one.spiffe_id != other.spiffe_id:
        raise NotAuthenticated(
            f"the proofs disagree: {one.method} says {one.spiffe_id}, {other.method} says {other.spiffe_id}"
        )
    return Attested(
        one.spiffe_id,
        f"{one.method}+{other.method}",
        one.selectors | other.selectors,
        {**one.details, **other.details},
        one.single_use or other.single_use,
        other.caller if one.caller is None else one.caller,
    )
