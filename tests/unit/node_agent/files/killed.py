"""An agent that writes files and is killed at one moment: `python -m ... FOLDER TOLD MOMENT`.

written    the files are there, and nobody was told
telling    the reader has heard of them, and its command still runs
told       the command has ended well, and that is not kept yet
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.fakes.authority import FakeAuthority
from tests.unit.node_agent.files.world import World, counting

_KILL = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"


class _Killed(World):
    """A world that ends at its first, or its second, progress."""

    at: int | None = None

    def made_progress(self) -> None:
        super().made_progress()
        if self.progress == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


async def main(folder: Path, told: Path, moment: str) -> None:
    world = _Killed(FakeAuthority(), folder)
    world.at = {"written": 1, "telling": None, "told": 2}[moment]
    world.renew()
    *python, script = counting(told)
    command = (*python, script + _KILL) if moment == "telling" else (*python, script)
    async with world.writing(command=command):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
