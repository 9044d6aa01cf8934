"""The names of an SVID's files, and the modes that its key may have, as settings and volumes spell them."""

from __future__ import annotations

import enum

from istio_auth.sources.svid_files import SVIDLayout

KEY_MODES = {"0600": 0o600, "0640": 0o640, "0400": 0o400, "0440": 0o440}


class Layout(enum.Enum):
    """What the files are called."""

    ISTIO = "istio"  # cert-chain.pem, key.pem, root-cert.pem
    TLS = "tls"  # tls.crt, tls.key, ca.crt
    CREDENTIAL_BUNDLE = "credential-bundle"  # credential-bundle.pem (key and chain), trust-bundle.pem

    @property
    def names(self) -> SVIDLayout:
        """The names."""
        return _NAMES[self]


_NAMES = {
    Layout.ISTIO: SVIDLayout.ISTIO,
    Layout.TLS: SVIDLayout.KUBERNETES_TLS,
    Layout.CREDENTIAL_BUNDLE: SVIDLayout.CREDENTIAL_BUNDLE,
}
LAYOUTS = {each.value: each.names for each in Layout}
