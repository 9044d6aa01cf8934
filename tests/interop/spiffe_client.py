"""What the `spiffe` package makes of a Workload API, said line by line.

    python -m tests.interop.spiffe_client unix:///path/of/the.sock

One line of JSON for the client's answers, then one for each update of its X509Source, until standard input ends. It has
a process to itself, for its messages have the same names as other libraries'.
"""

from __future__ import annotations

import hashlib
import json
import sys

from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import WorkloadApiClient, X509Source


def _digest(source: X509Source) -> str:
    return hashlib.sha256(source.get_x509_context().default_svid.leaf.public_bytes(Encoding.DER)).hexdigest()


def main() -> None:
    """Ask, and follow."""
    (address,) = sys.argv[1:]
    with WorkloadApiClient(address) as client:
        context = client.fetch_x509_context()
        bundles = client.fetch_x509_bundles()
        print(
            json.dumps(
                {
                    "svids": [str(svid.spiffe_id) for svid in context.x509_svids],
                    "bundles": sorted(str(bundle.trust_domain) for bundle in bundles.bundles),
                }
            ),
            flush=True,
        )
    with X509Source(socket_path=address) as source:
        source.subscribe_for_updates(lambda: print(_digest(source), flush=True))
        print(_digest(source), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
