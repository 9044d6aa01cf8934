"""The open streams of SDS and the Workload API: who is served what, what each has taken, and what it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from istio_auth.daemon.output import Fact, Section, Tone
from istio_auth.door import UnixCaller
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON
from node_agent.sds.served import Served
from node_agent.workload_api.service import Stream
from node_agent.workloads.cache import WorkloadCache
from node_agent.workloads.entitlement import Entitlement

COLUMNS = ("API", "CLIENT", "PID", "RESOURCES", "VERSION TAKEN", "BUNDLE", "REFUSED")
_SHOWN = 3  # names in a cell
_LENGTH = 80  # of a reason in a cell


def sds_streams(clients: Iterable[Served]) -> list[JSON]:
    """The streams of SDS clients, as plain data."""
    return [
        {
            **_stream("sds", client.caller, client.entitled),
            "name": client.name(),
            "resources": list(client.names),
            "waits_for": list(client.pending()),
            "version": client.version or None,
            "bundle": client.holding().value,
            "bundle_sequence": client.sequence(),
            "refusals": client.refusals,
            "refused": dict(client.refused),
        }
        for client in sorted(clients, key=lambda each: each.caller.pid)
    ]


def workload_api_streams(streams: Iterable[Stream], cache: WorkloadCache, own: TrustDomain) -> list[JSON]:
    """The streams of the Workload API, as plain data: nobody refuses anything there."""
    bundles = cache.snapshot.bundles
    return [
        {
            **_stream("workload-api", stream.caller, stream.entitled),
            "name": stream.name(),
            "resources": [stream.method],
            "waits_for": [] if stream.sent is not None else ["the first SVID"],
            "version": stream.version or None,
            "bundle": "current" if stream.sent is bundles else "lagging",
            "bundle_sequence": stream.sequence(own),
            "refusals": 0,
            "refused": {},
        }
        for stream in sorted(streams, key=lambda each: each.caller.pid)
    ]


def stream_rows(found: Sequence[JSON]) -> list[tuple[str, ...]]:
    """The streams for people, one line each (see `COLUMNS`)."""
    return [_row(each) for each in cast("Sequence[Mapping[str, JSON]]", found)]


def stream_troubles(found: Sequence[JSON]) -> list[Section]:
    """In full, what a line has no room for: what streams wait for, and what they refuse and why."""
    sections = []
    for row in cast("Sequence[Mapping[str, JSON]]", found):
        refused = cast("Mapping[str, str]", row["refused"])
        facts = [Fact("waits for", _texts(row["waits_for"]), Tone.ODD)] if row["waits_for"] else []
        facts += [Fact.of("refused", f"{name}: {reason}", tone=Tone.BAD) for name, reason in refused.items()]
        if facts:
            by = Fact.of("by", f"{row['api']}: {row['caller']}")
            sections.append(Section(f"Client {row['name']}", [by, *facts]))
    return sections


def _row(row: Mapping[str, JSON]) -> tuple[str, ...]:
    names, refused = _texts(row["resources"]), cast("Mapping[str, str]", row["refused"])
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    name, reason = next(iter(refused.items()), ("", ""))
    now = f"; now {name}: {reason[:_LENGTH]}" if refused else ""
    return (
        str(row["api"]),
        str(row["name"]),
        str(row["pid"]),
        ", ".join(names[:_SHOWN] + more),
        str(row["version"] or "-"),
        _bundle(row),
        f"{row['refusals']}{now}",
    )


def _bundle(row: Mapping[str, JSON]) -> str:
    sequence = row["bundle_sequence"]
    return str(row["bundle"]) if sequence is None else f"{sequence}, {row['bundle']}"


def _stream(api: str, caller: UnixCaller, entitled: Entitlement) -> dict[str, JSON]:
    ids: list[JSON] = [str(each) for each in entitled.ids]
    return {"api": api, "caller": str(caller), "pid": caller.pid, "identities": ids}


def _texts(value: JSON) -> list[str]:
    return [str(each) for each in cast("list[JSON]", value)]
