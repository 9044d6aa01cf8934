"""One folder of files for a workload: `[[files]]` in the agent's configuration."""

from __future__ import annotations

import grp
import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from signal import Signals
from urllib.parse import urlsplit

from istio_auth.errors import ConfigurationError
from istio_auth.sources.svid_files import SVIDLayout
from node_agent.layout import KEY_MODES, LAYOUTS

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SIGNALS = ("HUP", "USR1", "USR2", "TERM", "INT")


@dataclass(frozen=True, slots=True)
class FilesSettings:
    """A folder that the agent keeps certificates in, and who is told when they change.

    Args:
        name: what it earns its identity by: a registration with the selector `files:<name>`.
        folder: where; made if it is not there.
        layout: the names of the files: `istio` (cert-chain.pem, key.pem, root-cert.pem), `tls` (tls.crt, tls.key,
            ca.crt) or `credential-bundle` (credential-bundle.pem with key and chain, trust-bundle.pem).
        key_mode: of the private key's file: 0600, 0640, 0400 or 0440.
        group: the group that may read them, by name or number; needs a key_mode that lets it.
        command: run after each change, without a shell.
        signal: sent after each change to the process in `pid_file`.
        pid_file: where that process writes its number.
        process: the name of that process, as `ps` shows it; empty if any will do.
        post: an HTTP address that is called after each change.
        timeout: how long telling may take.
    """

    name: str
    folder: Path
    layout: str = "istio"
    key_mode: str = "0600"
    group: str = ""
    command: tuple[str, ...] = ()
    signal: str = ""
    pid_file: Path | None = None
    process: str = ""
    post: str = ""
    timeout: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(f"{self.name[:100]!r} is no name for files: use a-z, 0-9, '.', '_' and '-'")
        if not self.folder.is_absolute():
            raise ConfigurationError(f"files {self.name}: {self.folder} is no absolute path")
        if self.layout not in LAYOUTS:
            raise ConfigurationError(f"files {self.name}: layout {self.layout!r} is none of {', '.join(LAYOUTS)}")
        if self.key_mode not in KEY_MODES:
            raise ConfigurationError(f"files {self.name}: key_mode {self.key_mode!r} is none of {', '.join(KEY_MODES)}")
        if self.group and not self.mode & 0o040:
            raise ConfigurationError(f"files {self.name}: group {self.group} can not read the key: set key_mode 0640")
        self._check_hook()

    def _check_hook(self) -> None:
        ways = [bool(self.command), bool(self.signal or self.pid_file), bool(self.post)]
        if sum(ways) > 1:
            raise ConfigurationError(f"files {self.name}: name one of command, signal and post")
        if bool(self.signal) != (self.pid_file is not None):
            raise ConfigurationError(f"files {self.name}: signal and pid_file belong together")
        if self.process and not self.signal:
            raise ConfigurationError(f"files {self.name}: process belongs to signal and pid_file")
        if self.signal and self.signal.removeprefix("SIG") not in _SIGNALS:
            raise ConfigurationError(f"files {self.name}: signal {self.signal!r} is none of {', '.join(_SIGNALS)}")
        if self.post and not _is_http(self.post):  # not shown, for it may hold a password
            raise ConfigurationError(f"files {self.name}: post is no http or https address without a user in it")
        if self.command and not Path(self.command[0]).is_absolute():
            raise ConfigurationError(f"files {self.name}: command {self.command[0]!r} is no absolute path")

    @property
    def names(self) -> SVIDLayout:
        """The names of the files."""
        return LAYOUTS[self.layout]

    @property
    def mode(self) -> int:
        """The mode of the key's file."""
        return KEY_MODES[self.key_mode]

    @property
    def signal_number(self) -> Signals:
        """The signal to send."""
        return Signals[f"SIG{self.signal.removeprefix('SIG')}"]

    @property
    def post_address(self) -> str:
        """Where `post` goes, without its query, which may hold a secret."""
        return urlsplit(self.post)._replace(query="", fragment="").geturl()

    @property
    def way(self) -> str:
        """How its reader is told: `command`, `signal` or `post`; empty if nobody is."""
        return "command" if self.command else "signal" if self.signal else "post" if self.post else ""

    @property
    def hook(self) -> str:
        """By what one sees that a reader is told in another way than before; it tells nothing of the way itself."""
        way = (self.command, self.signal, self.pid_file and str(self.pid_file), self.post)
        return hashlib.sha256(repr(way).encode()).hexdigest()

    def group_number(self) -> int | None:
        """The group's number; None for the agent's own.

        Raises:
            ConfigurationError: there is no such group.
        """
        if not self.group or self.group.isdigit():
            return int(self.group) if self.group else None
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError as error:
            raise ConfigurationError(f"files {self.name}: there is no group {self.group!r}") from error


def _is_http(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
