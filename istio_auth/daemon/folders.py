"""Where a daemon keeps its files: the system's folders for root, the user's own for everybody else.

File Hierarchy Standard 3.0 for root, XDG Base Directory 0.8 otherwise. As XDG demands, a variable that holds no
absolute path counts as unset.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from istio_auth.errors import ConfigurationError

_NAME = "istio-auth"


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of this installation. This class does not make them.

    Args:
        config: what the operator writes.
        state: what must outlive a restart of the machine.
        runtime: sockets; a restart of the machine removes them.
    """

    config: Path
    state: Path
    runtime: Path

    @classmethod
    def of_user(cls, uid: int, environment: Mapping[str, str], home: Callable[[], Path] = Path.home) -> Folders:
        """The folders that a user with this environment has.

        Args:
            uid: who it is.
            environment: where the XDG variables are.
            home: gives the user's home; called only if a variable that is needed is not set.

        Raises:
            ConfigurationError: the user has no home, and one is needed.
        """
        if uid == 0:
            return cls(Path("/etc") / _NAME, Path("/var/lib") / _NAME, Path("/run") / _NAME)

        def base(variable: str) -> Path | None:
            path = Path(environment.get(variable, ""))
            return path / _NAME if path.is_absolute() else None

        def below_home(variable: str, place: str) -> Path:
            try:
                return base(variable) or home() / place / _NAME
            except RuntimeError as error:  # how pathlib says it
                raise ConfigurationError(f"uid {uid} has no home folder: set HOME or {variable}") from error

        state = below_home("XDG_STATE_HOME", ".local/state")
        # Without a runtime folder of the session, sockets go where nobody else can make a name: below our own state.
        return cls(below_home("XDG_CONFIG_HOME", ".config"), state, base("XDG_RUNTIME_DIR") or state / "run")

    @classmethod
    def here(cls) -> Folders:
        """The folders of the user that runs this process (see `of_user`)."""
        return cls.of_user(os.geteuid(), os.environ)
