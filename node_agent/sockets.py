"""The workloads' sockets on this machine: who may connect to each, and a socket that was removed is made again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from istio_auth.door import Door, UnixCaller
from istio_auth.errors import IstioAuthError, NotAuthorized
from node_agent.config import SocketSettings

LOOK_AT_SOCKETS = 2.0  # seconds
log = structlog.get_logger()


class Sockets:
    """The sockets.

    Args:
        settings: of each.
        run_folder: ours; it is made again together with a socket in it.
        door: lets callers in.
    """

    def __init__(self, settings: Sequence[SocketSettings], run_folder: Path, door: Door) -> None:
        self._sockets, self._run_folder, self._door = settings, run_folder, door
        self._lost: dict[Path, str] = {}

    async def listen(self) -> None:
        """Let workloads in.

        Raises:
            ConfigurationError: a socket can not be made.
            NotReady: another process listens there.
        """
        for each in self._sockets:
            await self._listen(each)

    async def keep_listening(self) -> None:
        """Listen again where a socket was removed, for as long as we run: workloads that start later need it."""
        while True:
            await asyncio.sleep(LOOK_AT_SOCKETS)
            for each in self._sockets:
                await self._find_again(each)

    def trouble(self) -> str | None:
        """Which sockets are gone, and why; None if all is well."""
        return "; ".join(self._lost.values()) or None

    async def _listen(self, settings: SocketSettings) -> None:
        path, name = settings.path, settings.name
        await self._door.listen_unix(path, name=name, mode=settings.permissions, admit=admission(settings))
        log.info("workloads are served", socket=str(path), name=name)

    async def _find_again(self, settings: SocketSettings) -> None:
        if not self._door.is_lost(settings.path) and settings.path not in self._lost:
            return
        self._door.stop_listening_at(settings.path)
        try:
            if settings.path.parent == self._run_folder:
                await asyncio.to_thread(self._run_folder.mkdir, mode=0o755, parents=True, exist_ok=True)
            await self._listen(settings)
        except (IstioAuthError, OSError) as error:
            reason = f"socket {settings.path} is gone, and can not be made again: {error}"
            if self._lost.get(settings.path) != reason:
                log.warning("a socket is gone", reason=reason)
            self._lost[settings.path] = reason
        else:
            self._lost.pop(settings.path, None)


def admission(settings: SocketSettings) -> Callable[[UnixCaller], None] | None:
    """Who may connect to a socket at all; None if everybody may."""
    if not settings.uids:
        return None
    welcome = frozenset(settings.uids)

    def admit(caller: UnixCaller) -> None:
        if caller.uid not in welcome:
            allowed = ", ".join(map(str, sorted(welcome)))
            raise NotAuthorized(f"{caller} is refused: this socket is for uid {allowed}")

    return admit
