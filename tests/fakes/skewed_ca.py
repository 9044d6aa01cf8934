"""`istio-ca` by a clock that is wrong: `python -m tests.fakes.skewed_ca SECONDS [FLAGS]`, ahead or, negative, behind.

What is shifted is all the time that the program itself reads. OpenSSL, which verifies its peers, reads the machine's.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

from ca.app import main
from istio_auth.system_clock import SystemClock

_AHEAD = timedelta(seconds=float(sys.argv.pop(1)))


def _shifted(_: SystemClock) -> datetime:
    return datetime.now(UTC) + _AHEAD


if __name__ == "__main__":
    SystemClock.now = _shifted  # type: ignore[method-assign,assignment]  # what this is for
    main()
