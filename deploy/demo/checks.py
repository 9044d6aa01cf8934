"""What must be refused is refused, by whom it should be and for the reason it should be.

A closed connection alone proves nothing. So each refusal is shown by the counter of the Envoy that refused, which must
grow while the call is made, and stands between two calls that pass and differ from it in the one fault only.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping

from deploy.demo.client import Answer, CallFailed, http_get, tcp_echo, tls_client
from deploy.demo.envoy import Envoy
from deploy.demo.layout import Layout
from deploy.demo.report import Finding, Report
from deploy.demo.sql import ask
from deploy.demo.tokens import USER_HEADER, Issuer, bearing
from deploy.demo.waiting import holds_within
from deploy.demo.workloads import Workload, Workloads

Call = Callable[[], Awaitable[object]]
_COUNTED_WITHIN = 5.0


async def run_checks(layout: Layout, workloads: Workloads, report: Report) -> None:
    """Prove everything that needs no time to pass."""
    report.note("each refusal below came between two calls that passed and differ from it in the one fault only")
    checks = _Checks(layout, workloads, report)
    await checks.callers()
    await checks.servers()
    await checks.permissive()
    await checks.tokens()
    await checks.tcp()
    if workloads.database is not None:
        await checks.sql()


class _Checks:
    def __init__(self, layout: Layout, workloads: Workloads, report: Report) -> None:
        self._frontend, self._backend, self._intruder = workloads.all
        self._report = report
        self._ours = _client(layout, "ours")
        self._foreign = _client(layout, "foreign")
        self._anonymous = tls_client()
        self._issuer = workloads.issuer

    async def callers(self) -> None:
        """Who may call the backend, whose mode is STRICT."""
        self._report.title("A backend that lets in the frontend, by mutual TLS only")
        port = self._backend.place.ports["web"]
        good = self._through(self._frontend, "backend")
        await self._passes("the frontend calls", good, self._frontend)
        no_tls = _at(self._backend, "web", "no_filter_chain_match")
        await self._refused("plain HTTP", lambda: http_get(port), good, no_tls)
        await self._refused(
            "TLS without a client certificate",
            lambda: http_get(port, tls=self._anonymous),
            lambda: http_get(port, tls=self._ours),
            _at(self._backend, "web", "ssl.fail_verify_no_cert"),
        )
        await self._refused(
            "a valid identity that is not allowed (intruder)",
            self._through(self._intruder, "backend"),
            good,
            _at(self._backend, "web", "ssl.fail_verify_san"),
        )
        await self._refused(
            "the frontend's name, signed by a foreign CA",
            lambda: http_get(port, tls=self._foreign),
            lambda: http_get(port, tls=self._ours),
            _at(self._backend, "web", "ssl.fail_verify_error"),
        )

    async def servers(self) -> None:
        """Whom the frontend believes to be the backend."""
        self._report.title("A frontend that knows which identity its server must have")
        counter = _Counter(self._frontend.envoy, "frontend", "cluster.outbound_impostor.ssl.fail_verify_san", many=True)
        await self._refused(
            "a server with the wrong identity (intruder)",
            self._through(self._frontend, "impostor"),
            self._through(self._frontend, "intruder"),
            counter,
        )

    async def permissive(self) -> None:
        """What a listener in transition takes."""
        self._report.title("A port of the backend in mode PERMISSIVE")
        port = self._backend.place.ports["open"]
        await self._passes("mutual TLS", self._through(self._frontend, "backend-open"), self._frontend)
        forged = {"x-forwarded-client-cert": f"URI={self._frontend.place.id}"}
        await self._passes("plain HTTP, with a forged identity", lambda: http_get(port, headers=forged), None)
        await self._refused(
            "mutual TLS by a foreign CA",
            lambda: http_get(port, tls=self._foreign),
            lambda: http_get(port, tls=self._ours),
            _at(self._backend, "open", "ssl.fail_verify_error"),
        )

    async def tokens(self) -> None:
        """Who calls comes from TLS, on whose behalf from a token."""
        self._report.title("A port of the backend that asks for a token as well")
        denied = _Counter(self._backend.envoy, "backend", "http.inbound_users.jwt_authn.denied")

        def call(headers: Mapping[str, str]) -> Callable[[], Awaitable[Answer]]:
            return self._through(self._frontend, "backend-users", headers)

        good, forged = (bearing(issuer.token("alice")) for issuer in (self._issuer, Issuer()))
        await self._refused("no token", call({}), call(good), denied, status="401")
        await self._refused("a token that somebody else signed", call(forged), call(good), denied, status="401")
        await self._passes(
            "a good token, beside a forged user", call(good | {USER_HEADER: "root"}), self._frontend, user="alice"
        )

    async def tcp(self) -> None:
        """The same for a protocol that is not HTTP."""
        self._report.title("A port of the backend that speaks TCP, not HTTP")
        port, good = self._backend.place.ports["tcp"], self._echo(self._frontend)
        await good()
        self._report.add(Finding("the frontend connects", "passed", "the bytes it sent came back"))
        no_tls = _at(self._backend, "tcp", "no_filter_chain_match")
        await self._refused("plain TCP", lambda: tcp_echo(port), good, no_tls)
        await self._refused(
            "TLS without a client certificate",
            lambda: tcp_echo(port, tls=self._anonymous),
            lambda: tcp_echo(port, tls=self._ours),
            _at(self._backend, "tcp", "ssl.fail_verify_no_cert"),
        )
        await self._refused(
            "a valid identity that is not allowed (intruder)",
            self._echo(self._intruder),
            good,
            _at(self._backend, "tcp", "ssl.fail_verify_san"),
        )

    async def sql(self) -> None:
        """A real database: whoever asks it is told by the sidecar alone."""
        self._report.title("A PostgreSQL of the backend: plain SQL at both ends, mutual TLS between their sidecars")
        port, good = self._backend.place.ports["sql"], self._ask(self._frontend)
        version = await ask(self._frontend.outbound["backend-sql"])
        self._report.add(Finding("the frontend asks", "passed", f"PostgreSQL {version} answers"))
        no_tls = _at(self._backend, "sql", "no_filter_chain_match")
        await self._refused("plain SQL from elsewhere", lambda: ask(port), good, no_tls)
        await self._refused(
            "a valid identity that is not allowed (intruder)",
            self._ask(self._intruder),
            good,
            _at(self._backend, "sql", "ssl.fail_verify_san"),
        )

    async def _passes(
        self, name: str, call: Callable[[], Awaitable[Answer]], caller: Workload | None, *, user: str = ""
    ) -> None:
        expected = str(caller.place.id) if caller else ""
        try:
            answer = await call()
        except CallFailed as error:
            self._report.add(Finding(name, "REFUSED", str(error), holds=False))
            return
        seen = f"{answer.workload} sees {answer.caller or 'no identity'}"
        if found := answer.headers.get(USER_HEADER, ""):
            seen += f", on behalf of {found}"
        self._report.add(Finding(name, "passed", seen, holds=(answer.caller, found) == (expected, user)))

    async def _refused(self, name: str, call: Call, good: Call, counter: _Counter, *, status: str = "") -> None:
        """A call that must fail between two that must not; the counter must grow by the refused one alone.

        Args:
            name: what is wrong with the call.
            call: the one to be refused.
            good: the same without the fault.
            counter: the refusing side's own.
            status: what the caller must hear, if anything.
        """
        try:
            await good()
            before = await counter.value()
            try:
                await call()
            except CallFailed as refusal:
                grown, heard = await counter.growth(before), f" {status} " in f"{refusal} " or not status
            else:
                self._report.add(Finding(name, "PASSED", "it should have been refused", holds=False))
                return
            await good()
        except CallFailed as error:
            self._report.add(Finding(name, "unclear", f"the call without the fault failed: {error}", holds=False))
            return
        holds = heard and (grown >= 1 if counter.many else grown == 1)
        told = f"{counter} +{grown}" + (f", {status}" if heard and status else "")
        self._report.add(Finding(name, "refused", told, holds=holds))

    def _through(
        self, workload: Workload, upstream: str, headers: Mapping[str, str] = {}
    ) -> Callable[[], Awaitable[Answer]]:
        return lambda: http_get(workload.outbound[upstream], headers=headers)

    def _ask(self, workload: Workload) -> Call:
        return lambda: ask(workload.outbound["backend-sql"])

    def _echo(self, workload: Workload) -> Call:
        return lambda: tcp_echo(workload.outbound["backend-tcp"])


class _Counter:
    """One counter of an Envoy.

    Args:
        envoy: whose.
        owner: its name.
        name: the counter's.
        many: whether one call may count several times, because Envoy tries again.
    """

    def __init__(self, envoy: Envoy, owner: str, name: str, *, many: bool = False) -> None:
        self._envoy = envoy
        self._owner = owner
        self._name = name
        self.many = many

    async def value(self) -> int:
        """Its value now."""
        return (await self._envoy.counters(self._name.replace(".", r"\."))).get(self._name, 0)

    async def growth(self, since: int) -> int:
        """By how much it has grown, as soon as it has; 0 if it does not in time."""

        async def has_grown() -> bool:
            return await self.value() > since

        await holds_within(_COUNTED_WITHIN, has_grown)
        return await self.value() - since

    def __str__(self) -> str:
        return f"{self._owner}'s Envoy: {self._name}"


def _at(workload: Workload, listener: str, counter: str) -> _Counter:
    return _Counter(workload.envoy, workload.place.name, f"listener.inbound_{listener}.{counter}")


def _client(layout: Layout, issuer: str) -> ssl.SSLContext:
    folder = layout.operator_folder / issuer
    return tls_client(folder / "cert-chain.pem", folder / "key.pem")
