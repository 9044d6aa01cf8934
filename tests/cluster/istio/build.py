"""Istio's own programs, built once from its Go module: istiod, and what of its agent speaks to a CA.

`python -m tests.cluster.istio.build` does it by hand and prints the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fakes.go_module import BuildFailed, GoModule, tell

ISTIO = GoModule(
    "istio",
    Path(__file__).parent / "programs",
    "istiod, and Istio's own client of a CA",
    {"pilot-discovery": "istio.io/istio/pilot/cmd/pilot-discovery", "citadel": "./citadel"},
)


def main() -> int:
    """Build what is missing and print the folder."""
    try:
        print(ISTIO.programs())
    except BuildFailed as error:
        tell(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
