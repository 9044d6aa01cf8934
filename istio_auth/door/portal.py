"""The way out: a private Unix socket whose connections are spliced to a TLS server."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Self

from istio_auth.errors import IstioAuthError


class Portal:
    """A private Unix socket whose connections are spliced to a TLS server. An async context manager."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, *, folder: Path | None = None) -> None:
        self.target = "unix:"
        self.authority = f"{host}:{port}"
        self.last_error: IstioAuthError | None = None

    async def start(self) -> None:
        """Listen."""

    async def close(self) -> None:
        """End."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()
