"""What an operator sees of a running agent, as plain data with stable names. No keys, no certificates, no tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

from istio_auth.clock import Clock
from istio_auth.daemon.output import iso, iso_if_any
from istio_auth.door import ProcessHandle, UnixCaller
from istio_auth.errors import IstioAuthError, MissingError, NotAuthenticated
from istio_auth.registration import Registration, Selector
from istio_auth.strict_json import JSON
from node_agent.admin.streams import sds_streams, workload_api_streams
from node_agent.attest.proc import status_fields
from node_agent.ca_client.access import Standing
from node_agent.files.report import files_document
from node_agent.serving import Workloads
from node_agent.sync import Sync
from node_agent.trust import Trust
from node_agent.workloads.cache import Held, WorkloadCache
from node_agent.workloads.plan import first_to_lapse
from node_agent.workloads.registrations import Want
from node_agent.workloads.renewal import Renewals

_POD = "k8s:pod-uid:"


@dataclass(frozen=True)
class Status:
    """Looks at the parts of an agent.

    Args:
        clock: tells the time.
        cache: what workloads hold.
        workloads: the ways by which they are served.
        own: what the agent itself holds.
        ca: how it stands with its CA.
        refusal: why a workload's SVID was refused the last time; None if it was not.
        problems: what keeps it from its work.
        refused_for: how long the CA has refused a workload's SVID.
        remarks: what an operator should look at, though the work goes on.
        csi: its volumes, if it is a CSI node plugin.
    """

    clock: Clock
    cache: WorkloadCache
    workloads: Workloads
    own: Callable[[], dict[str, JSON]]
    ca: Callable[[], dict[str, JSON]]
    refusal: Callable[[Want], str | None]
    problems: Callable[[], Mapping[str, str]]
    refused_for: Callable[[Want], timedelta | None] = field(default=lambda _want: None)
    remarks: Callable[[], Mapping[str, str]] = field(default=dict)
    csi: Callable[[], dict[str, JSON] | None] = field(default=lambda: None)

    def document(self) -> dict[str, JSON]:
        """Everything, as of now."""
        now, snapshot = self.clock.now(), self.cache.snapshot
        return {
            "now": iso(now),
            "problems": dict(self.problems()),
            "degraded": dict(self.remarks()),
            "agent": self.own(),
            "ca": self.ca() | {"trust_domains": _words(sorted(each.trust_domain.name for each in snapshot.bundles))},
            "first_lapse": iso_if_any(first_to_lapse(snapshot)),
            "workloads": [
                svid_document(snapshot.held.get(spiffe_id), self.refusal(want))
                | {"spiffe_id": str(spiffe_id), "since": _since(self.refused_for(want), now)}
                for spiffe_id, want in sorted(snapshot.wanted.items())
            ],
            "files": list(map(files_document, self.workloads.files)),
            "csi": self.csi(),
            "kubelet": {"trouble": self.workloads.kubernetes.pods.trouble} if self.workloads.kubernetes else None,
            "limits": self.workloads.quota.document(),
            "clients": self._streams(),
        }

    async def explained(self, pid: int) -> dict[str, JSON]:
        """What a process of this machine would be served, whichever socket it came through.

        Raises:
            MissingError: there is no such process, or it has ended meanwhile.
        """
        caller = await asyncio.to_thread(process, pid)
        try:
            selectors, troubles = await self._observed(caller)
            caller.check_same_process()
        except NotAuthenticated as error:
            raise MissingError(f"process {pid} has ended meanwhile") from error
        finally:
            if caller.process is not None:
                caller.process.close()
        by_socket = {row: {each for each in row.selectors if each.type == "socket"} for row in self._rows()}
        fitting = [] if troubles else [row for row, through in by_socket.items() if row.fits(selectors | through)]
        near = min(self._rows(), key=lambda row: len(row.missing(selectors | by_socket[row])), default=None)
        return {
            "caller": str(caller),
            "selectors": _words(sorted(selectors)),
            "trouble": "; ".join(troubles) or None,
            "earns": [{"spiffe_id": str(row.spiffe_id), "through": _words(sorted(by_socket[row]))} for row in fitting],
            "nearest": None
            if fitting or near is None
            else {
                "spiffe_id": str(near.spiffe_id),
                "missing": _words(sorted(near.missing(selectors | by_socket[near]))),
            },
            "volumes": self._volumes(selectors),
        }

    async def _observed(self, caller: UnixCaller) -> tuple[frozenset[Selector], list[str]]:
        """What is seen of a process, and why more is not."""
        seen, troubles = frozenset[Selector](), list[str]()
        for attestor in self.workloads.observing:
            try:
                seen |= await attestor.attest(caller)
            except IstioAuthError as error:
                troubles.append(str(error))
        return seen, troubles

    def _volumes(self, selectors: Iterable[Selector]) -> list[JSON]:
        """The CSI volumes of its pod, whose sockets have identities of their own."""
        pods = {str(each).removeprefix(_POD) for each in selectors if str(each).startswith(_POD)}
        rows = cast("list[dict[str, JSON]]", (self.csi() or {}).get("volumes", []))
        return [dict(row) for row in rows if row["pod_uid"] in pods]

    def _rows(self) -> tuple[Registration, ...]:
        return self.cache.snapshot.registrations

    def _streams(self) -> list[JSON]:
        served = self.workloads
        return [
            *sds_streams(served.discovery.clients()),
            *workload_api_streams(served.workload_api.streams(), self.cache, served.trust_domain),
        ]


def own_document(standing: Standing, now: datetime) -> dict[str, JSON]:
    """What an agent holds itself."""
    own = standing.svid
    return {
        "spiffe_id": str(own.id) if own else None,
        "not_after": iso(own.not_after) if own else None,
        "renewal": iso_if_any(standing.due),
        "trouble": standing.trouble,
        "since": _since(standing.failing_for, now),
    }


def ca_document(sync: Sync, renewals: Renewals, trust: Trust, now: datetime) -> dict[str, JSON]:
    """How an agent stands with its CA."""
    return {
        "in_sync": sync.connected,
        "trouble": renewals.trouble or sync.trouble,
        "since": _since(renewals.failing_for if renewals.trouble else sync.failing_for, now),
        "bundle_sequence": trust.own.sequence,
    }


def svid_document(held: Held | None, trouble: str | None) -> dict[str, JSON]:
    """An SVID that is held, and why it was not renewed."""
    return {
        "spiffe_id": str(held.svid.id) if held else None,
        "not_after": iso(held.svid.not_after) if held else None,
        "renewal": iso(held.due) if held else None,
        "trouble": trouble,
    }


def process(pid: int) -> UnixCaller:
    """A process as a caller, with its present effective user and group, at no socket; its handle is to be closed.

    Raises:
        MissingError: there is no such process.
    """
    try:
        handle = ProcessHandle.of(pid)
        try:
            fields = status_fields(Path(f"/proc/{pid}"))
        except OSError:
            handle.close()
            raise
    except (NotAuthenticated, OSError) as error:
        raise MissingError(f"process {pid} can not be looked at: {error}") from error
    uid, gid = (int(fields[name].split()[1]) for name in ("Uid", "Gid"))
    return UnixCaller(uid, gid, pid, "", handle)


def _words(values: Iterable[object]) -> list[JSON]:
    return [str(each) for each in values]


def _since(failing_for: timedelta | None, now: datetime) -> str | None:
    return None if failing_for is None else iso(now - failing_for)
