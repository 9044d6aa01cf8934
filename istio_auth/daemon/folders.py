"""Where a daemon keeps its things: the system's folders for root, the user's own for everybody else.

File Hierarchy Standard 3.0 for root, XDG Base Directory 0.8 otherwise; as the latter demands, a variable that holds
no absolute path counts as unset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from istio_auth.errors import ConfigurationError

_NAME = "istio-auth"


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of this installation. None of them is made here.

    Args:
        config: what the operator writes.
        state: what must outlive a restart of the machine.
        runtime: sockets, gone with the machine's uptime.
    """

    config: Path
    state: Path
    runtime: Path

    @classmethod
    def of_user(cls, uid: int, environment: Mapping[str, str], home: Path) -> Folders:
        """The folders that a user with this environment and home has."""
        if uid == 0:
            return cls(Path("/etc") / _NAME, Path("/var/lib") / _NAME, Path("/run") / _NAME)

        def base(variable: str) -> Path | None:
            path = Path(environment.get(variable, ""))
            return path / _NAME if path.is_absolute() else None

        state = base("XDG_STATE_HOME") or home / ".local/state" / _NAME
        # Without a runtime folder of the session, sockets go where nobody else can make a name: below our own state.
        runtime = base("XDG_RUNTIME_DIR") or state / "run"
        return cls(base("XDG_CONFIG_HOME") or home / ".config" / _NAME, state, runtime)

    @classmethod
    def here(cls) -> Folders:
        """The folders of the user that runs this process.

        Raises:
            ConfigurationError: the user has no home.
        """
        uid = os.geteuid()
        try:
            home = Path("/root") if uid == 0 else Path.home()
        except RuntimeError as error:
            raise ConfigurationError(
                f"uid {uid} has no home folder: set HOME, or XDG_STATE_HOME and its kin"
            ) from error
        return cls.of_user(uid, os.environ, home)
