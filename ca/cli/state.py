"""The CA's state folder, for the commands that look into it or write to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ca.agents.folder import AgentFolder
from ca.agents.join_token import JoinTokenFolder
from ca.authority.state import AuthorityState
from ca.authority.store import FileAuthorityStore
from ca.config import FILE_NAME, PREFIX, Config
from istio_auth.daemon.settings import Loaded, configured
from istio_auth.errors import ConfigurationError, MissingError
from istio_auth.files import private_folder


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where a CA keeps its things, and how they are named there."""

    path: Path

    @classmethod
    def of(cls, given: Path | None) -> StateFolder:
        """The folder that was given, or the one that istio-ca would use here. It need not be there yet."""
        return cls(ca_settings({}).config.state_folder if given is None else given)

    @classmethod
    def existing(cls, given: Path | None) -> StateFolder:
        """As `of`, for what needs a CA that is there.

        Raises:
            ConfigurationError: there is no such folder.
        """
        state = cls.of(given)
        if not state.path.is_dir():
            raise ConfigurationError(
                f"there is no CA in {state.path}: name its folder with --state-folder, or start istio-ca"
            )
        return state

    @property
    def issuance_log(self) -> Path:
        """The file of the issuance log."""
        return self.path / "issuance.log"

    def store(self) -> FileAuthorityStore:
        """Where the authority is kept."""
        return FileAuthorityStore(self.path)

    def authority(self) -> AuthorityState:
        """What the CA is now.

        Raises:
            MissingError: there is no CA yet.
            ConfigurationError, NotReady: its state is damaged, or could not be looked at.
        """
        if (stored := self.store().load()) is None:
            raise MissingError(f"there is no CA in {self.path} yet: start istio-ca, or issue a certificate")
        return stored.value

    def tokens(self) -> JoinTokenFolder:
        """Its join tokens."""
        private_folder(self.path)
        return JoinTokenFolder(self.path / "tokens")

    def agents(self) -> AgentFolder:
        """Its node agents."""
        private_folder(self.path)
        return AgentFolder(self.path / "agents")


def ca_settings(flags: Mapping[str, str]) -> Loaded[Config]:
    """The settings that istio-ca has here with these flags, from the same file and environment.

    Raises:
        ConfigurationError: one of them can not be used.
    """
    return configured(Config, prefix=PREFIX, file_name=FILE_NAME, flags=flags)
