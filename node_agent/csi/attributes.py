"""What whoever writes a pod may ask for as attributes of its volume. Pure. An unknown one is refused with its name.

| attribute     | value                                                                            |
|---------------|----------------------------------------------------------------------------------|
| `form`        | `sockets` (default): SDS and the Workload API on a socket of this pod alone; or `files` |
| `ttl`         | the lifetime to ask for, for instance `1h`                                        |
| `socket`      | the socket's name (`agent.sock`)                                                  |
| `layout`      | the files' names: `istio` (default), `tls` or `credential-bundle`                 |
| `keyEncoding` | `PKCS8` (default), or `PKCS1` for the older forms: PKCS#1 for RSA, SEC 1 for EC    |
| `combined`    | the name of one more file that holds the key and then the chain                   |
| `keyMode`     | 0600, 0400, or with an fsGroup 0640 (then the default) or 0440                    |
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from istio_auth.clock import parse_duration
from istio_auth.errors import ConfigurationError, MalformedError
from istio_auth.sources.svid_files import SVIDLayout
from node_agent.layout import KEY_MODES, LAYOUTS

SOCKET = "agent.sock"
LONGEST_SOCKET = 32
_LONGEST_FILE = 63
_ENCODINGS = {"PKCS8": False, "PKCS1": True}
_FOR_ALL = frozenset({"form", "ttl"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Form(enum.Enum):
    """What a volume holds."""

    SOCKETS = "sockets"
    FILES = "files"


@dataclass(frozen=True, slots=True)
class FilesForm:
    """How files are written.

    Args:
        layout: their names.
        key_mode: the mode of each file with the key.
        group: the group that may read them; None for our own.
        traditional_key: whether the key is PKCS#1 or SEC 1 instead of PKCS#8.
        combined: one more file, with key and chain; none if empty.
    """

    layout: SVIDLayout
    key_mode: int
    group: int | None
    traditional_key: bool
    combined: str


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of a volume.

    Args:
        form: what it holds.
        ttl: the lifetime to ask for; None for what the CA gives.
        socket: the name of its socket.
        files: how its files are written.
    """

    form: Form
    ttl: timedelta | None
    socket: str
    files: FilesForm

    @classmethod
    def of(cls, asked: Mapping[str, str], group: str) -> Self:
        """What is asked for.

        Args:
            asked: the attributes by name.
            group: the number of the pod's fsGroup; empty if it has none.

        Raises:
            MalformedError: it can not be had.
        """
        form = Form(_one_of(asked, "form", [each.value for each in Form], Form.SOCKETS.value))
        _check_known(asked, form)
        socket = _file_name(asked, "socket", SOCKET, LONGEST_SOCKET)
        return cls(form, _duration(asked, "ttl"), socket, _files(asked, group))


def refused(message: str) -> MalformedError:
    """What the kubelet asks for can not be had; it shows the whole message at the pod."""
    return MalformedError(message, public=message)


def _check_known(attributes: Mapping[str, str], form: Form) -> None:
    allowed = _FOR_ALL | ({"socket"} if form is Form.SOCKETS else {"layout", "keyEncoding", "combined", "keyMode"})
    for name in sorted(attributes.keys() - allowed):
        raise refused(
            f"attribute {name[:100]!r} is unknown for form {form.value!r}; known are {', '.join(sorted(allowed))}"
        )


def _files(attributes: Mapping[str, str], group: str) -> FilesForm:
    layout = LAYOUTS[_one_of(attributes, "layout", LAYOUTS, "istio")]
    mode = KEY_MODES[_one_of(attributes, "keyMode", KEY_MODES, "0640" if group else "0600")]
    if mode & 0o040 and not group:
        raise refused(f"keyMode {attributes['keyMode']} lets a group read the key: set fsGroup in the pod")
    traditional = _ENCODINGS[_one_of(attributes, "keyEncoding", _ENCODINGS, "PKCS8")]
    combined = _file_name(attributes, "combined", "", _LONGEST_FILE)
    if combined in layout.names:
        raise refused(f"combined {combined!r} is the name of another file of this layout")
    return FilesForm(layout, mode, int(group) if group else None, traditional, combined)


def _one_of(attributes: Mapping[str, str], name: str, known: Mapping[str, object] | list[str], default: str) -> str:
    if (value := attributes.get(name, default)) not in known:
        raise refused(f"attribute {name} {value[:100]!r} is none of {', '.join(known)}")
    return value


def _duration(attributes: Mapping[str, str], name: str) -> timedelta | None:
    try:
        return parse_duration(attributes[name]) if name in attributes else None
    except ConfigurationError as error:
        raise refused(f"attribute {name}: {error}") from error


def _file_name(attributes: Mapping[str, str], name: str, default: str, longest: int) -> str:
    value = attributes.get(name, default)
    if value != default and (not _NAME.fullmatch(value) or len(value) > longest):
        raise refused(f"attribute {name} {value[:100]!r} is no file name of at most {longest} letters, digits, . _ -")
    return value
