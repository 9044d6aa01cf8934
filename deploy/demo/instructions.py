"""What one can do with a demo that keeps running."""

from __future__ import annotations

import shlex
from pathlib import Path

from deploy.demo.layout import LOOPBACK, Layout
from deploy.demo.postgresql import DATABASE, USER
from deploy.demo.processes import program
from deploy.demo.workloads import Workload, Workloads

_CURL = "curl -sS"


def instructions(layout: Layout, workloads: Workloads, ttl: str) -> str:
    """Commands to try, each with what it shows."""
    frontend, backend, intruder = workloads.all
    operator, bundle = layout.operator_folder, layout.operator_folder / "trust-bundle.json"
    port, cli = backend.place.ports["web"], _word(program("ca-cli"))
    ours, foreign = (_identity(operator / name) for name in ("ours", "foreign"))
    users = _plain(frontend, "backend-users")
    state = f"--state-folder {_word(layout.folder / 'ca')}"
    agent, admin = _word(program("node-agent")), f"--admin-socket {_word(layout.folder / 'agent' / 'admin.sock')}"
    sections = {
        "Call the backend": {
            "the frontend, which is allowed: the backend tells who it sees calling": _plain(frontend, "backend"),
            "the intruder, which is not: the backend's sidecar ends the connection": _plain(intruder, "backend"),
            "without TLS: closed": f"{_CURL} http://{LOOPBACK}:{port}/",
            "by TLS without a certificate: closed": f"{_CURL} -k https://{LOOPBACK}:{port}/",
            "with a certificate of the frontend that the operator issued: answered": f"{_CURL} -k {ours} https://{LOOPBACK}:{port}/",
            "with one of a foreign CA, under the same name: closed": f"{_CURL} -k {foreign} https://{LOOPBACK}:{port}/",
            "a server with the wrong identity: the frontend's sidecar does not connect": _plain(frontend, "impostor"),
            "the PERMISSIVE port, without TLS: answered, and no caller is seen": f"{_CURL} http://{LOOPBACK}:{backend.place.ports['open']}/",
        },
        "Call it on behalf of somebody": {
            "the port that asks for a token, without one: 401": users,
            "with a token: the backend finds alice in the header x-user": f"{users} -H @{_word(layout.token_header)}",
            "whose tokens it takes": f"cat {_word(backend.place.folder / 'tokens.yaml')}",
        },
        **_sql(workloads),
        "Look at certificates": {
            "what the backend's sidecar presents now": f"{_admin(backend)}/certs",
            "and whether it would be accepted": f"{cli} verify {LOOPBACK}:{port} --trust-bundle {_word(bundle)} "
            f"--id {backend.place.id} --svid {_word(operator / 'ours')}",
            "a certificate, in words": f"{cli} inspect {_word(operator / 'ours')}",
            "everything that was issued": f"{cli} log {state}",
            "the agents that joined": f"{cli} agent list {state}",
        },
        "Look behind": {
            "why the backend's sidecar refused somebody": f"grep failure {_word(backend.envoy.child.output)}",
            "its counters": f"{_admin(backend)}/stats?filter=fail_verify",
            "what the agent holds, and for whom": f"{agent} status {admin}",
            "what a process is to it: the backend's sidecar": f"{agent} explain {admin} "
            f"--pid {backend.envoy.child.process.pid}",
            "the CA's metrics": f"{_CURL} http://{LOOPBACK}:{layout.ca_health}/metrics | grep ^istio",
            "the agent's": f"{_CURL} http://{LOOPBACK}:{layout.agent_health}/metrics | grep ^istio",
            "logs of everything": f"tail -f {_word(layout.folder / 'logs')}/*.err",
        },
    }
    lines = [f"\nEverything runs, with certificates that live for {ttl}. In another terminal:"]
    for title, commands in sections.items():
        lines.append(f"\n{title}")
        for about, command in commands.items():
            lines += [f"  # {about}", f"  {command}"]
    return "\n".join([*lines, "\nCtrl-C ends it all and removes its folder."])


def _sql(workloads: Workloads) -> dict[str, dict[str, str]]:
    """How to ask the database, if there is one."""
    if (database := workloads.database) is None:
        return {}

    def through(workload: Workload) -> str:
        return (
            f"{_word(database.programs / 'psql')} -c 'SHOW server_version' "
            f"'host={LOOPBACK} port={workload.outbound['backend-sql']} user={USER} dbname={DATABASE} sslmode=disable'"
        )

    return {
        "Ask the backend's PostgreSQL": {
            "through the frontend's sidecar: answered": through(workloads.frontend),
            "through the intruder's: the backend's sidecar ends the connection": through(workloads.intruder),
        }
    }


def _plain(workload: Workload, upstream: str) -> str:
    return f"{_CURL} http://{LOOPBACK}:{workload.outbound[upstream]}/"


def _identity(folder: Path) -> str:
    return f"--cert {_word(folder / 'cert-chain.pem')} --key {_word(folder / 'key.pem')}"


def _admin(workload: Workload) -> str:
    return f"{_CURL} --unix-socket {_word(workload.envoy.admin)} http://envoy"


def _word(path: Path) -> str:
    return shlex.quote(str(path))
