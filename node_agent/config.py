"""The agent's settings, and what can be checked of them before it runs."""

from __future__ import annotations

import re
import socket as sockets
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from istio_auth.daemon.command import LogSettings
from istio_auth.daemon.folders import Folders
from istio_auth.daemon.settings import Setting
from istio_auth.door.unix_socket import check_path
from istio_auth.errors import ConfigurationError, InvalidSpiffeID
from istio_auth.host_port import HostPort
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.attest.settings import KubernetesSettings
from node_agent.ca_client.istio_ca import IstioCASettings
from node_agent.csi.settings import CSISettings
from node_agent.files.settings import FilesSettings
from node_agent.limits import LimitsSettings

PREFIX = "ISTIO_AUTH_AGENT__"
CA_ADDRESS = HostPort("localhost", 15012)
METRICS_LISTEN = HostPort("127.0.0.1", 15021)
TRUST_DOMAIN = TrustDomain("cluster.local")
_SOCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MODE = re.compile(r"0?[0-7]{3}")


@dataclass(frozen=True, slots=True)
class SocketSettings:
    """One Unix socket for workloads: `[[socket]]` in the file.

    Args:
        path: where it is; its folder must exist, or be in the folder for sockets.
        name: what its callers are known by: they have the selector `socket:<name>`.
        mode: its mode, in octal. Who may connect is known by uid, and gets what is registered for it; so a socket
            that everybody may connect to tells nobody anything.
        uids: the only users that may connect; none means all.
    """

    path: Path
    name: str
    mode: str = "0666"
    uids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not _SOCKET_NAME.fullmatch(self.name):
            raise ConfigurationError(f"{self.name[:100]!r} is no name for a socket: use a-z, 0-9, '.', '_' and '-'")
        if not _MODE.fullmatch(self.mode):
            raise ConfigurationError(f"{self.mode[:100]!r} is no mode: write it in octal, for instance 0600")
        if not self.path.is_absolute():
            raise ConfigurationError(f"{self.path} is no absolute path")
        check_path(self.path)
        if any(uid < 0 for uid in self.uids):
            raise ConfigurationError("a uid is not negative")

    @property
    def permissions(self) -> int:
        """The mode as a number."""
        return int(self.mode, 8)


@dataclass(frozen=True, slots=True)
class Config:
    """The settings."""

    ca_address: Annotated[HostPort, Setting("where the CA is")] = CA_ADDRESS
    ca_timeout: Annotated[timedelta, Setting("how long one call to the CA may take")] = timedelta(seconds=15)
    trust_domain: Annotated[TrustDomain, Setting("our trust domain")] = TRUST_DOMAIN
    trust_bundle: Annotated[
        Path, Setting("the bundle pinned for the CA: what `ca-cli trust-bundle` printed, or PEM")
    ] = field(default_factory=lambda: Folders.here().config / "trust-bundle.json")
    join_token_file: Annotated[Path | None, Setting("the file with the token to join by; needed once")] = None
    ca_token_file: Annotated[
        Path | None,
        Setting("on Kubernetes, in the place of a join token: the file with the projected token of our own pod"),
    ] = None
    name: Annotated[
        str, Setting("the name to join by, on Kubernetes that of the node; the SPIFFE ID is made of it")
    ] = field(default_factory=sockets.gethostname)
    svid_ttl: Annotated[timedelta | None, Setting("the lifetime to ask for, for our own SVID")] = None
    mounted: Annotated[
        Path | None, Setting("a folder with a certificate that somebody else renews: it is served, and no CA is asked")
    ] = None
    mounted_roots: Annotated[
        Path | None, Setting("where the roots of that certificate are, if they are not in its folder")
    ] = None
    registrations: Annotated[
        Path | None, Setting("a file of workloads, for a CA that sends none: it has Istio's contract only")
    ] = None
    state_folder: Annotated[Path, Setting("where our own key and SVID are kept")] = field(
        default_factory=lambda: Folders.here().state / "agent"
    )
    run_folder: Annotated[Path, Setting("where the socket is, if none is named in the file")] = field(
        default_factory=lambda: Folders.here().runtime
    )
    admin_socket: Annotated[
        Path | None, Setting("where `node-agent status` and `explain` are answered [admin.sock in run_folder]")
    ] = None
    keep_folder: Annotated[
        Path | None, Setting("where registrations and live certificates are kept between starts, in memory")
    ] = None
    allow_disk_cache: Annotated[
        bool, Setting("keep them there also if that is a disk, where workloads' keys can be found later")
    ] = False
    metrics_listen: Annotated[HostPort, Setting("where health and metrics are served")] = METRICS_LISTEN
    log: LogSettings = field(default_factory=LogSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    istio_ca: IstioCASettings = field(default_factory=IstioCASettings)
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)
    csi: CSISettings = field(default_factory=CSISettings)
    socket: tuple[SocketSettings, ...] = ()
    files: tuple[FilesSettings, ...] = ()

    def __post_init__(self) -> None:
        try:
            SpiffeID.for_agent(self.trust_domain, self.name)
        except InvalidSpiffeID as error:
            raise ConfigurationError(f"{self.name[:100]!r} can not be our name: {error}; set another") from error
        if not self.ca_address.host or not self.ca_address.port:
            raise ConfigurationError(f"ca_address {str(self.ca_address)!r} can not be dialled: give host and port")
        if self.mounted_roots is not None and self.mounted is None:
            raise ConfigurationError("mounted_roots belongs to mounted, which is not set")
        if self.mounted is not None and self.csi.endpoint is not None:
            raise ConfigurationError(
                "mounted and csi.endpoint exclude each other: an agent that asks no CA has no volumes"
            )
        if self.mounted is not None and self.kubernetes.kubelet is not None:
            raise ConfigurationError(
                "mounted and kubernetes.kubelet exclude each other: whoever reaches a socket has what is mounted"
            )
        self._check_istio_ca()
        self._check_pod_token()
        for table, rows, what in (
            ("sockets", self.socket, "path"),
            ("sockets", self.socket, "name"),
            ("tables of files", self.files, "name"),
            ("tables of files", self.files, "folder"),
        ):
            values = [getattr(each, what) for each in rows]
            if len(set(values)) != len(values):
                raise ConfigurationError(f"two {table} have the same {what}")

    def _check_istio_ca(self) -> None:
        if self.istio_ca.server_name is None:
            return
        if self.mounted is not None:
            raise ConfigurationError("mounted and istio_ca exclude each other: such an agent asks no CA")
        if (self.istio_ca.token_file is None) != (self.registrations is None):
            raise ConfigurationError(
                "istio_ca.token_file and registrations go together: the token asks for those who are registered, and "
                "such a CA tells nobody who that is"
            )
        if self.registrations is None and self.csi.endpoint is None:
            raise ConfigurationError(
                "there is nobody to serve: name istio_ca.token_file and registrations, or csi.endpoint, or both"
            )

    def _check_pod_token(self) -> None:
        if self.ca_token_file is None:
            return
        for name, other in (("join_token_file", self.join_token_file), ("mounted", self.mounted)):
            if other is not None:
                raise ConfigurationError(f"ca_token_file and {name} exclude each other: there is one way to an SVID")
        if self.istio_ca.server_name is not None:
            raise ConfigurationError("ca_token_file is for a CA of ours; for another one, name istio_ca.token_file")

    @property
    def spiffe_id(self) -> SpiffeID:
        """Who we are."""
        return SpiffeID.for_agent(self.trust_domain, self.name)

    @property
    def admin_at(self) -> Path:
        """The socket for operators."""
        return self.admin_socket or self.run_folder / "admin.sock"

    @property
    def sockets(self) -> tuple[SocketSettings, ...]:
        """The sockets for workloads: those of the file, or else one for everybody."""
        return self.socket or (SocketSettings(self.run_folder / "agent.sock", "agent"),)
