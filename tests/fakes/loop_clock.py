"""The clock of an event loop, set forward: what would come after a long wait comes now, however slow the machine is."""

from __future__ import annotations

import asyncio
from datetime import timedelta


def set_forward(by: timedelta) -> None:
    """Let so much time go by at once, for all that waits in the loop that runs."""
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + by.total_seconds()  # type: ignore[method-assign]  # of this one loop
