"""The CA's state folder, for the commands that look into it or write to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ca.agents.folder import AgentFolder
from ca.agents.join_token import JoinTokenFolder
from ca.authority.state import AuthorityState
from ca.authority.store import FileAuthorityStore
from ca.config import FILE_NAME, PREFIX, Config, Platform
from istio_auth.daemon.settings import Loaded, configured
from istio_auth.errors import ConfigurationError, MissingError
from istio_auth.files import private_folder


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where a CA keeps its things, and how they are named there.

    Args:
        path: the folder.
        platform: what the CA runs on: on Kubernetes its authority is elsewhere.
    """

    path: Path
    platform: Platform = Platform.STANDALONE

    @classmethod
    def of(cls, given: Path | None) -> StateFolder:
        """The folder that was given, or the one that istio-ca would use here. It need not be there yet."""
        if given is not None:
            return cls(given)
        config = ca_settings({}).config
        return cls(config.state_folder, config.platform)

    @classmethod
    def existing(cls, given: Path | None) -> StateFolder:
        """As `of`, for commands that need a CA that is there.

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
        """The state of the authority now.

        Raises:
            MissingError: there is no CA yet.
            ConfigurationError: its state is damaged, or not kept in a folder.
            NotReady: it could not be looked at.
        """
        require_folder(self.platform, "`ca-cli inspect configmap/istio-ca-root-cert` shows its trust bundle")
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


def require_folder(platform: Platform, instead: str) -> None:
    """Make sure that the authority is kept in a folder.

    Args:
        platform: what the CA runs on.
        instead: what to do if it is not.

    Raises:
        ConfigurationError: it is kept elsewhere.
    """
    if platform is Platform.KUBERNETES:
        raise ConfigurationError(f"this CA runs on Kubernetes, and keeps its authority in a secret there: {instead}")


def ca_settings(flags: Mapping[str, str]) -> Loaded[Config]:
    """The settings that istio-ca has here with these flags, from the same file and environment.

    Raises:
        ConfigurationError: one of them can not be used.
    """
    return configured(Config, prefix=PREFIX, file_name=FILE_NAME, flags=flags)
