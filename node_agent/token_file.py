"""What a file with a token holds: one word, whoever wrote it and whatever it proves."""

from __future__ import annotations

from pathlib import Path

from istio_auth.errors import ConfigurationError


def token_in(content: bytes, path: Path, *, kind: str = "token", empty: bool = False) -> str:
    """The token in the content of a file.

    Args:
        content: of the file.
        path: its path, for the error.
        kind: what kind of token it is, for the error.
        empty: whether there may be none.

    Raises:
        ConfigurationError: it holds no token.
    """
    text = content.decode("latin-1").strip()
    if not (text or empty) or any(character <= " " or character > "~" for character in text):
        raise ConfigurationError(f"{path} holds no {kind}: a token is one word")
    return text
