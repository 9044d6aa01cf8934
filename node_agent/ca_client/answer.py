"""What the CA answered becomes an SVID only if it is exactly what was asked for: key, name, chain, leaf rules, times.

A CA that is wrong, or is not the one it seems, must not get a certificate into our hands that we would then serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509

from istio_auth.bundle import BundleSource
from istio_auth.errors import Fault, InvalidPEM, InvalidSVID, KeyRejected, NotReady, VerificationError
from istio_auth.keys import PrivateKey
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.verify import verify_chain

SHORTEST = timedelta(seconds=5)  # what is left of a certificate must be long enough to be handed on and be renewed


class BadAnswer(NotReady):
    """The CA answered with something that can not be used; what is held stays, and it is asked again.

    Args:
        fault: what is wrong, in one word for a metric.
        message: the whole reason.
    """

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(f"the CA's answer is refused ({fault}): {message}")
        self.fault = fault


def accepted(
    chain: Sequence[x509.Certificate],
    key: PrivateKey,
    spiffe_id: SpiffeID,
    *,
    bundles: BundleSource,
    now: datetime,
) -> X509SVID:
    """The SVID that an answer makes.

    Args:
        chain: what the CA sent, leaf first.
        key: the key whose CSR was sent.
        spiffe_id: the identity that was asked for.
        bundles: whom we trust.
        now: the instant at which it must be valid.

    Raises:
        BadAnswer: it makes none.
    """
    try:
        proven = verify_chain(chain, bundles, now)
        svid = X509SVID.of(chain, key)
    except VerificationError as error:
        raise BadAnswer(error.fault.value, str(error)) from error
    except (InvalidSVID, KeyRejected, InvalidPEM) as error:
        raise BadAnswer("key", str(error)) from error
    if proven != spiffe_id:
        raise BadAnswer("name", f"it names {proven}, and {spiffe_id} was asked for")
    if svid.not_before > now:
        raise BadAnswer(Fault.NOT_YET_VALID.value, f"its chain is valid from {svid.not_before:%F %T} UTC")
    if svid.not_after - now < SHORTEST:
        raise BadAnswer("too short", f"it ends {svid.not_after:%F %T} UTC, now is {now:%F %T}")
    return svid
