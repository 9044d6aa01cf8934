"""`node-agent status` and `node-agent explain --pid N`: what a running agent says of itself, for people or as JSON."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, cast

import typer

from istio_auth.clock import in_words
from istio_auth.daemon.folders import Folders
from istio_auth.daemon.output import Fact, Output, Section, Tone, print_json, print_sections, print_table
from istio_auth.errors import IstioAuthError, MissingError, NotReady
from istio_auth.strict_json import JSON, parse_json
from node_agent.admin.streams import COLUMNS, stream_rows, stream_troubles

_PATIENCE = 30.0  # seconds; a kubelet that is slow is waited for
_LARGEST = 64 << 20
SocketOption = Annotated[
    Path | None,
    typer.Option("--admin-socket", metavar="PATH", help="Where the agent answers, if not at its usual place."),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")]
PidOption = Annotated[int, typer.Option("--pid", metavar="N", help="The process.", min=1)]


def status(admin_socket: SocketOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show what the running agent holds: remaining lives, next renewals, clients, and what is wrong."""
    found = asked(admin_socket, "/status")
    if output is Output.JSON:
        print_json(found)
        return
    streams = cast("list[JSON]", found["clients"])
    print_sections(status_sections(found))
    print()
    print_table(COLUMNS, stream_rows(streams), empty="no stream is open")
    if troubles := stream_troubles(streams):
        print()
        print_sections(troubles)


def explain(pid: PidOption, admin_socket: SocketOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show what a process is to the running agent: its selectors, what it earns by them, or what it lacks."""
    found = asked(admin_socket, f"/explain?pid={pid}")
    print_json(found) if output is Output.JSON else print_sections([explanation(found)])


def asked(admin_socket: Path | None, path: str) -> dict[str, JSON]:
    """What the agent answers.

    Raises:
        NotReady: nobody answers there, or may be asked by us.
        MissingError: it does not know what was asked for.
    """
    where = admin_socket or Folders.here().runtime / "admin.sock"
    connection = _UnixConnection(where)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        document = parse_json(answer.read(_LARGEST), limit=_LARGEST)
    except (OSError, http.client.HTTPException, IstioAuthError) as error:
        raise NotReady(
            f"no agent answers at {where}: {error}; it runs as another user, or with another admin_socket?"
        ) from error
    finally:
        connection.close()
    found = cast("dict[str, JSON]", document)
    if answer.status != http.client.OK:
        raise MissingError(str(found.get("error")))
    return found


def status_sections(found: Mapping[str, JSON]) -> list[Section]:
    """A status for people."""
    now = datetime.fromisoformat(str(found["now"]))
    agent, ca = (cast("dict[str, JSON]", found[name]) for name in ("agent", "ca"))
    problems, degraded = (cast("dict[str, str]", found[name]) for name in ("problems", "degraded"))
    sections = [
        Section(
            "Agent",
            [
                Fact.of("identity", str(agent["spiffe_id"] or "none yet"), _life(agent, now)),
                *_trouble(agent),
                *(Fact.of("not ready", f"{name}: {reason}", tone=Tone.BAD) for name, reason in problems.items()),
                *(Fact.of("degraded", f"{name}: {reason}", tone=Tone.ODD) for name, reason in degraded.items()),
            ],
        ),
        Section(
            "CA",
            [
                Fact.of("stream", "open" if ca["in_sync"] else "none", tone=Tone.GOOD if ca["in_sync"] else Tone.BAD),
                *_trouble(ca),
                Fact.of("bundle", f"sequence {ca['bundle_sequence']}, of {', '.join(_texts(ca['trust_domains']))}"),
                Fact.of("without the CA", _forecast(found["first_lapse"], now)),
            ],
        ),
    ]
    workloads = cast("list[dict[str, JSON]]", found["workloads"])
    sections += [Section(f"Workload {row['spiffe_id']}", [_held(row, now), *_trouble(row)]) for row in workloads]
    sections.append(Section("Streams", _limits(cast("dict[str, JSON]", found["limits"]))))
    files = cast("list[dict[str, JSON]]", found["files"])
    if found["kubelet"] is not None:
        trouble = _trouble(cast("dict[str, JSON]", found["kubelet"]))
        sections.append(
            Section("Kubelet", trouble or [Fact.of("pods", "told when they are asked for", tone=Tone.GOOD)])
        )
    sections += [Section(f"Files {row['name']}", _files(row)) for row in files]
    if found["csi"] is not None:
        sections += csi_sections(cast("dict[str, JSON]", found["csi"]), now)
    return sections


def explanation(found: Mapping[str, JSON]) -> Section:
    """An explanation for people."""
    facts = [Fact.of("selectors", *_texts(found["selectors"])), *_trouble(found)]
    for row in cast("list[dict[str, JSON]]", found["earns"]):
        through = _texts(row["through"])
        where = f" through {' and '.join(through)}" if through else ""
        facts.append(Fact.of("earns", f"{row['spiffe_id']}{where}", tone=Tone.GOOD))
    if not found["earns"]:
        near = cast("dict[str, JSON] | None", found["nearest"])
        facts.append(Fact.of("earns", "nothing", tone=Tone.BAD))
        if near is None:
            facts.append(Fact.of("registered", "nothing on this node", tone=Tone.ODD))
        else:
            facts.append(Fact.of("nearest", str(near["spiffe_id"])))
            facts.append(Fact("lacks", _texts(near["missing"]), Tone.BAD))
    volumes = cast("list[dict[str, JSON]]", found["volumes"])
    facts += [Fact.of("volume", f"{row['spiffe_id']} for whoever in the pod mounts {row['volume']}") for row in volumes]
    return Section(str(found["caller"]), facts)


def csi_sections(found: Mapping[str, JSON], now: datetime) -> list[Section]:
    """The CSI driver and its volumes, for people."""
    registered = {True: "by the kubelet", False: "no", None: "not yet"}[cast("bool | None", found["registered"])]
    tone = Tone.GOOD if found["registered"] else Tone.BAD
    driver = Section(f"CSI driver {found['driver']}", [Fact.of("registered", registered, tone=tone), *_trouble(found)])
    volumes = [
        Section(
            f"Volume of {row['pod']}",
            [
                Fact.of("identity", str(row["spiffe_id"]), str(row["form"])),
                _held(row, now),
                Fact.of("token", f"until {row['token_ends']}" if row["token_ends"] else "none yet"),
                *_trouble(row),
            ],
        )
        for row in cast("list[dict[str, JSON]]", found["volumes"])
    ]
    return [driver, *volumes]


def _life(row: Mapping[str, JSON], now: datetime) -> str:
    if row["not_after"] is None:
        return "no certificate"
    left = datetime.fromisoformat(str(row["not_after"])) - now
    if left.total_seconds() <= 0:
        return f"ended {in_words(left)} ago"
    due = datetime.fromisoformat(str(row["renewal"])) - now
    renewal = f"renewed in {in_words(due)}" if due.total_seconds() > 0 else "renewal is due"
    return f"ends in {in_words(left)}, {renewal}"


def _held(row: Mapping[str, JSON], now: datetime) -> Fact:
    return Fact.of("certificate", _life(row, now), tone=Tone.PLAIN if row["not_after"] else Tone.BAD)


def _forecast(first_lapse: JSON, now: datetime) -> str:
    if first_lapse is None:
        return "no workload holds a certificate"
    left = datetime.fromisoformat(str(first_lapse)) - now
    return f"the first workload loses its certificate in {in_words(left)}"


def _files(row: Mapping[str, JSON]) -> list[Fact]:
    if row["written"] is None:
        return [Fact.of("written", "never", tone=Tone.BAD), *_told(row), *_trouble(row)]
    return [
        Fact.of("written", f"{row['written']} to {row['folder']}"),
        Fact.of("identity", str(row["spiffe_id"]), f"serial {row['serial']}"),
        Fact.of(
            "bundle",
            f"{row['bundle']}, sequence {row['bundle_sequence']}",
            tone=Tone.ODD if row["bundle"] == "lagging" else Tone.PLAIN,
        ),
        *_told(row),
        *_trouble(row),
    ]


def _told(row: Mapping[str, JSON]) -> list[Fact]:
    told = [Fact.of("told", f"{row['told_at']}: {row['told']}")] if row["told"] else []
    if row["hook"] and not row["told"]:
        told = [Fact.of("told", "not yet", tone=Tone.BAD)]
    if row["next_attempt"]:
        told.append(
            Fact.of("next attempt", f"{row['next_attempt']}, after {row['failed_attempts']} that failed", tone=Tone.BAD)
        )
    return told


def _limits(found: Mapping[str, JSON]) -> list[Fact]:
    busiest = [f"{row['streams']} of uid {row['uid']}" for row in cast("list[dict[str, JSON]]", found["busiest"])]
    return [
        Fact.of("open", f"{found['streams']} of at most {found['streams_allowed']}"),
        *([Fact("most", [", ".join(busiest) + f" (at most {found['streams_per_user_allowed']})"])] if busiest else []),
    ]


def _trouble(row: Mapping[str, JSON]) -> list[Fact]:
    since = [f"since {row['since']}"] if row.get("since") else []
    return [Fact.of("trouble", str(row["trouble"]), *since, tone=Tone.BAD)] if row["trouble"] else []


def _texts(value: JSON) -> Sequence[str]:
    return [str(each) for each in cast("list[JSON]", value)]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_PATIENCE)
        self.sock.connect(str(self._path))
