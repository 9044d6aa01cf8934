"""`istio-ca`: the certificate authority as a daemon."""

from __future__ import annotations

from typing import NoReturn

from ca.config import FILE_NAME, PREFIX, Config
from istio_auth.daemon.command import Program, run_command_line
from istio_auth.daemon.lifecycle import Daemon


async def _serve(config: Config, daemon: Daemon) -> None:
    from ca.composition import serve  # gRPC and all: not for --help

    await serve(config, daemon)


def _check(config: Config) -> None:
    from ca.composition import check_files

    check_files(config)


PROGRAM = Program(
    name="istio-ca",
    about="The certificate authority: issues SPIFFE certificates to proxies and node agents.",
    schema=Config,
    prefix=PREFIX,
    file_name=FILE_NAME,
    serve=_serve,
    check=_check,
)


def main() -> NoReturn:
    """The program."""
    run_command_line(PROGRAM)
