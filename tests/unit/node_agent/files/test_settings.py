"""What `[[files]]` may say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from istio_auth.errors import ConfigurationError
from istio_auth.sources.svid_files import SVIDLayout
from node_agent.files.settings import FilesSettings

FOLDER = Path("/run/certs")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "a b"}, "is no name for files"),
        ({"folder": Path("certs")}, "is no absolute path"),
        ({"layout": "pkcs12"}, "none of istio, tls, credential-bundle"),
        ({"key_mode": "0644"}, "none of 0600, 0640, 0400, 0440"),
        ({"group": "0"}, "can not read the key: set key_mode 0640"),
        ({"command": ("nginx",)}, "is no absolute path"),
        ({"command": ("/bin/true",), "post": "http://127.0.0.1/"}, "one of command, signal and post"),
        ({"signal": "HUP"}, "belong together"),
        ({"pid_file": Path("/run/x.pid")}, "belong together"),
        ({"process": "nginx"}, "belongs to signal"),
        ({"signal": "KILL", "pid_file": Path("/run/x.pid")}, "none of HUP"),
        ({"post": "ftp://127.0.0.1/"}, "is no http or https address"),
        ({"post": "http://[::1/"}, "is no http or https address"),
        ({"post": "http://user:password@127.0.0.1/"}, "^files web: post is no http or https address without a user"),
    ],
)
def test_what_can_not_work_is_refused_with_the_reason(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        FilesSettings(**{"name": "web", "folder": FOLDER, **fields})  # type: ignore[arg-type]  # by name


def test_what_it_says_is_understood() -> None:
    settings = FilesSettings("web", FOLDER, "tls", "0640", str(os.getgid()), signal="SIGHUP", pid_file=FOLDER / "pid")
    assert settings.names is SVIDLayout.KUBERNETES_TLS
    assert (settings.mode, settings.group_number()) == (0o640, os.getgid())
    assert settings.signal_number.name == "SIGHUP"
    assert FilesSettings("web", FOLDER, key_mode="0640", group="root").group_number() == 0


def test_a_group_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match="there is no group 'nobody-has-this'"):
        FilesSettings("web", FOLDER, key_mode="0640", group="nobody-has-this").group_number()
