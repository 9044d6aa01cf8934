"""Join tokens: how a machine that has no identity yet shows that an operator wants it to have one.

A token is 256 random bits, and enrols one agent. It is printed once; only its SHA-256 is kept, as the name of a file
that says whom it enrols and until when. A presented token is looked up by that hash. No comparison in constant time is
needed: to learn from the time that a look-up takes, an attacker would have to choose hashes, and nobody can find a
string with a chosen SHA-256.

A token is used up by renaming its file. The file system lets exactly one of several such renames win, whichever
threads or processes they come from, and the folder is synced before anybody acts on it. Used tokens are kept in `used/`
for a day after their end, so that the log can tell a reused token from an unknown one.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ca.agents.agent import check_agent_name, read_instant
from istio_auth.clock import in_words, whole_seconds
from istio_auth.errors import ConfigurationError, ConflictError, MissingError, NotAuthenticated, NotReady
from istio_auth.files import atomic_write, private_folder, read_bounded, sync_folder

DEFAULT_TTL = timedelta(minutes=10)
MAX_TTL = timedelta(days=7)
_PREFIX = "join-"  # tells the kind of a bearer token, to people and to scanners for lost secrets
_TOKEN = re.compile(_PREFIX + r"[A-Za-z0-9_-]{43}")
_HASH_FILE = re.compile(r"([0-9a-f]{64})\.json")
_ID_LENGTH = 16
_MIN_ID_LENGTH = 8
_MAX_FILE = 4096
_VERSION = 1
_SKEW = timedelta(minutes=2)
_KEPT_AFTER_END = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What is kept of a join token.

    Args:
        hash: the SHA-256 of the token, in hex.
        agent: the name of the agent that it enrols.
        created_at: when it was made.
        expires_at: when it stops being valid.
    """

    hash: str
    agent: str
    created_at: datetime
    expires_at: datetime

    @property
    def id(self) -> str:
        """The name under which people speak of it: the start of its hash."""
        return self.hash[:_ID_LENGTH]

    def check_time(self, now: datetime) -> None:
        """Check that it is good now.

        Raises:
            NotAuthenticated: it has ended, or was made in the future: a clock set back must not lengthen its life.
        """
        if now >= self.expires_at:
            raise NotAuthenticated(f"join token {self.id} ended {in_words(now - self.expires_at)} ago")
        if now < self.created_at - _SKEW:
            raise NotAuthenticated(f"join token {self.id} was made {in_words(self.created_at - now)} in the future")


def hash_of(token: str) -> str:
    """The hash under which a presented token is looked up.

    Raises:
        NotAuthenticated: the text is no join token.
    """
    if not _TOKEN.fullmatch(token):
        raise NotAuthenticated(f"the bearer token ({len(token)} characters) is no join token")
    return hashlib.sha256(token.encode()).hexdigest()


class JoinTokenFolder:
    """The join tokens of one CA: one file each. All methods block, and are safe beside those of other processes.

    Args:
        folder: where they are; made if it is not there, and open to us only.

    Raises:
        ConfigurationError: the folder can not be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        self._used = private_folder(folder / "used")

    def create(self, agent: str, now: datetime, *, ttl: timedelta = DEFAULT_TTL) -> tuple[str, JoinToken]:
        """A new token that enrols this agent, once.

        Returns:
            the token itself, which can not be shown again, and what is kept of it.

        Raises:
            ConfigurationError: that can be no agent's name, or the lifetime is out of bounds.
            NotReady: it could not be written.
        """
        check_agent_name(agent)
        if not timedelta(0) < ttl <= MAX_TTL:
            raise ConfigurationError(f"a join token lives up to {in_words(MAX_TTL)}, not {in_words(ttl)}")
        self.sweep(now)
        text = _PREFIX + secrets.token_urlsafe(32)
        created = whole_seconds(now)
        token = JoinToken(hash_of(text), agent, created, created + ttl)
        atomic_write(self._path(token.hash), _write(token))
        return text, token

    def find(self, token_hash: str) -> JoinToken:
        """The unused token with this hash. Whether it has expired is not checked here.

        Raises:
            NotAuthenticated: there is none, or its file is damaged; the reason tells a used one from an unknown one.
            NotReady: the look-up failed.
        """
        try:
            return _read(self._path(token_hash))
        except MissingError as error:
            state = "was used before" if self._used_path(token_hash).exists() else "is unknown, revoked or long ended"
            raise NotAuthenticated(f"join token {token_hash[:_ID_LENGTH]} {state}") from error
        except ConfigurationError as error:
            raise NotAuthenticated(f"join token {token_hash[:_ID_LENGTH]} can not be used: {error}") from error

    def use_up(self, token: JoinToken) -> None:
        """Use the token up, durably. Of several callers at once, exactly one succeeds.

        Raises:
            NotAuthenticated: somebody else was first, or it was revoked.
            NotReady: it may or may not be used up: try it again, and then a new one.
        """
        try:
            self._path(token.hash).rename(self._used_path(token.hash))
            sync_folder(self._used)
            sync_folder(self._folder)
        except FileNotFoundError as error:
            raise NotAuthenticated(f"join token {token.id} was used by somebody else just now, or revoked") from error
        except OSError as error:
            raise NotReady(f"join token {token.id} could not be used up: {error.strerror}") from error

    def list(self) -> list[JoinToken]:
        """The unused tokens, expired ones too, ordered by their end."""
        return sorted(self._tokens(self._folder), key=lambda token: (token.expires_at, token.hash))

    def revoke(self, token_id: str) -> JoinToken:
        """Remove the unused token whose hash starts with this id.

        Raises:
            ConfigurationError: too little of the id is given.
            MissingError: there is none.
            ConflictError: there are several.
        """
        if len(token_id) < _MIN_ID_LENGTH:
            raise ConfigurationError(f"give at least {_MIN_ID_LENGTH} characters of the id")
        found = [token for token in self.list() if token.hash.startswith(token_id.lower())]
        if len(found) > 1:
            raise ConflictError(f"{len(found)} join tokens start with {token_id[:64]!r}: give more of the id")
        if found and self._remove(found[0]):
            return found[0]
        raise MissingError(f"no unused join token has the id {token_id[:64]!r}")

    def revoke_all(self, agent: str) -> int:
        """Remove all unused tokens of an agent.

        Returns:
            how many there were.
        """
        return sum(self._remove(token) for token in self.list() if token.agent == agent)

    def sweep(self, now: datetime) -> None:
        """Remove the tokens, used or not, that expired more than a day ago."""
        for folder in (self._folder, self._used):
            for token in self._tokens(folder):
                if now >= token.expires_at + _KEPT_AFTER_END:
                    (folder / f"{token.hash}.json").unlink(missing_ok=True)

    def _remove(self, token: JoinToken) -> bool:
        try:
            self._path(token.hash).unlink()
        except FileNotFoundError:
            return False
        sync_folder(self._folder)
        return True

    def _tokens(self, folder: Path) -> Iterator[JoinToken]:
        for path in folder.iterdir():
            if _HASH_FILE.fullmatch(path.name):
                try:
                    yield _read(path)
                except (MissingError, ConfigurationError):
                    continue  # used or revoked since, or damaged: nobody can enrol with it

    def _path(self, token_hash: str) -> Path:
        return self._folder / f"{token_hash}.json"

    def _used_path(self, token_hash: str) -> Path:
        return self._used / f"{token_hash}.json"


def _read(path: Path) -> JoinToken:
    try:
        document = json.loads(read_bounded(path, _MAX_FILE))
        if document["version"] != _VERSION:
            raise ConfigurationError(f"{path} was written by a newer release")
        check_agent_name(document["agent"])
        created, expires = (read_instant(document[name]) for name in ("created_at", "expires_at"))
        return JoinToken(path.stem, document["agent"], created, expires)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is no join token") from error


def _write(token: JoinToken) -> bytes:
    document = {
        "version": _VERSION,
        "agent": token.agent,
        "created_at": token.created_at.isoformat(),
        "expires_at": token.expires_at.isoformat(),
    }
    return json.dumps(document, indent=2).encode() + b"\n"
