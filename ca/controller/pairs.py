"""PairMaker: makes a new key and its certificate, as the plan of a secret asks for them.

No registry is asked: the plan derives each identity from the service account alone, so what it asks for is granted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

from ca.attest import Attested
from ca.audit import Audit
from ca.authority.authority import ActiveIssuer, Authority
from ca.controller.action import Action
from ca.controller.material import CHAIN, KEY, ROOT, Damaged, Material, authority_id, digest, read_material
from ca.controller.sink import Pair
from ca.controller.tally import Tally
from ca.issuer import IssuedSVID, Issuer, Order
from ca.registry import Grant
from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.keys import PrivateKey, new_private_key
from istio_auth.pem import pem_of_der, write_private_key

METHOD = "service-account"
_MAX_REASON = 1000


class PairMaker:
    """Makes keys with their certificates. Lives on one event loop.

    Args:
        issuer: signs them.
        authority: whose issuer that is.
        audit: tells of each certificate.
        tally: counts what fails.
        ttl: the lifetime that is asked for.
        new_key: makes a key; another function than the default runs on a thread, for RSA takes time.
    """

    def __init__(
        self,
        issuer: Issuer,
        authority: Authority,
        audit: Audit,
        tally: Tally,
        *,
        ttl: timedelta,
        new_key: Callable[[], PrivateKey] = new_private_key,
    ) -> None:
        self._issuer = issuer
        self._authority = authority
        self._audit = audit
        self._tally = tally
        self._ttl = ttl
        self._new_key = new_key

    async def make(self, action: Action, root: bytes) -> Pair:
        """A new key and its certificate.

        Args:
            action: the plan; it names the identity.
            root: the trust bundle that will be in the secret with them, as PEM.

        Raises:
            IstioAuthError: none can be made (see `Issuer.issue`).
        """
        assert action.spiffe_id is not None, action.kind
        subject, request_id = action.subject, uuid4().hex
        key = await self._key()
        details = {"secret": f"{subject.namespace}/{subject.secret}", "reason": action.reason.value}
        attested = Attested(action.spiffe_id, METHOD, details=details | {"account_uid": subject.account_uid})
        grant = Grant(action.spiffe_id, self._ttl, action.dns_names)
        try:
            active = self._authority.active
            svid = await self._issuer.issue(Order(grant, key.public_key(), None, attested, request_id))
        except IstioAuthError as error:
            self._tally.sign_errors += 1
            self._audit.refused(error, request_id, caller="controller", attested=attested, wanted=str(action.spiffe_id))
            raise
        self._audit.issued(svid, attested, request_id)
        chain, key_pem = "".join(map(pem_of_der, svid.chain)).encode(), write_private_key(key)
        if self._authority.active is active:
            return Pair(chain, key_pem, _facts(svid, action, active, root))
        material = read_material({CHAIN: chain, KEY: key_pem, ROOT: root}, self._authority.bundle)
        if isinstance(material, Damaged):
            raise NotReady(f"what was issued is of no use: {material.detail}")
        return Pair(chain, key_pem, material)

    async def _key(self) -> PrivateKey:
        try:
            if self._new_key is new_private_key:
                return self._new_key()
            return await asyncio.to_thread(self._new_key)
        except Exception as error:
            self._tally.key_errors += 1
            raise NotReady(f"a key could not be made ({type(error).__name__})") from error


def _facts(svid: IssuedSVID, action: Action, active: ActiveIssuer, root: bytes) -> Material:
    """The facts about a certificate that this issuer has just made, without reading it again."""
    return Material(
        str(svid.spiffe_id),
        frozenset(action.dns_names),
        svid.serial,
        svid.not_before,
        svid.not_after,
        authority_id(active.certificate),
        frozenset({authority_id(active.issuer.root)}),
        digest(root),
    )
