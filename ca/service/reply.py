"""Writes the reply of Istio's contract: the leaf, each intermediate by itself, and all roots as one last element.

Everything after the leaf stays the same until the authority changes, so it is encoded once. The roots must stay the
same byte for byte: proxies compare them, and tell Envoy of each change.
"""

from __future__ import annotations

from ca.authority.authority import Authority
from ca.issuer import IssuedSVID
from istio_auth.errors import NotReady
from istio_auth.pem import pem_of_der


class ReplyWriter:
    """Writes replies.

    Args:
        authority: its roots are the last element.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._behind: tuple[tuple[bytes, ...], bytes, tuple[str, ...]] = ((), b"", ())

    def elements(self, svid: IssuedSVID) -> list[str]:
        """The elements for a certificate; at least two, each ended by a newline."""
        intermediates, roots = svid.chain[1:], self._authority.root_pem()
        if self._behind[0] != intermediates or self._behind[1] is not roots:
            if not roots.endswith(b"-----END CERTIFICATE-----\n"):
                raise NotReady("there are no roots to send")
            self._behind = (intermediates, roots, (*map(pem_of_der, intermediates), roots.decode()))
        return [pem_of_der(svid.chain[0]), *self._behind[2]]
