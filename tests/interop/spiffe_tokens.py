"""What the `spiffe` package makes of the JWT methods of a Workload API, and of its refusals: one line of JSON.

    python -m tests.interop.spiffe_tokens unix:///path/of/the.sock audience

It has a process to itself, for its messages have the same names as other libraries'.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from spiffe import WorkloadApiClient
from spiffe.errors import PySpiffeError


def _told(ask: Callable[[], object]) -> object:
    try:
        return ask()
    except PySpiffeError as error:
        return f"refused: {error}"


def main() -> None:
    """Ask."""
    address, audience = sys.argv[1:]
    with WorkloadApiClient(address) as client:
        token = client.fetch_jwt_svid({audience})
        bundles = client.fetch_jwt_bundles()
        answers = {
            "svid": str(token.spiffe_id),
            "audience": sorted(token.audience),
            "bundles": sorted(str(bundle.trust_domain) for bundle in bundles.bundles),
            "validated": str(client.validate_jwt_svid(token.token, audience).spiffe_id),
            "bad token": _told(lambda: client.validate_jwt_svid("bad", audience)),
            "x509": _told(client.fetch_x509_svid),
        }
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
