"""What a real Envoy makes of RequestAuthentication: each refusal by its own reason in the access log, then mended.

The last tests give the same tokens to our own verifier. The two engines agree, save on what is listed there.
"""

from __future__ import annotations

import base64
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import grpc
import pytest
from yarl import URL

from deploy.demo.waiting import holds_within
from istio_auth.envoy.endpoint import HostPort
from istio_auth.envoy.spec import Mode, Protocol
from istio_auth.envoy.token_rules import TokenRules
from istio_auth.jwks import KeySet
from istio_auth.pem import write_certificates
from istio_auth.policy.jwt_rule import ClaimToHeader, JWTHeader, JWTRule
from istio_auth.strict_json import JSON
from istio_auth.tokens import TokenRefused, verify_token
from tests.fakes.authority import FakeAuthority
from tests.fakes.key_server import KeyServer, says
from tests.fakes.token_issuer import AUDIENCE, TokenIssuer, base64url
from tests.fakes.waiting import until
from tests.interop.mesh import BACKEND, FRONTEND, Mesh, Workload, holding, letting_in, running_mesh
from tests.vectors.tokens import LONGEST_LIFE, hostile_tokens

A = TokenIssuer(place=20, issuer="https://a.test")
B = TokenIssuer("RS256", place=21, issuer="https://b.test")
A_RULE = JWTRule(issuer=A.issuer, jwks=A.jwks(), audiences=(AUDIENCE,))
B_RULE = JWTRule(issuer=B.issuer, jwks=B.jwks())
SEVERAL = "rbac_access_denied_matched_policy[several-tokens]"
MALFORMED = "rbac_access_denied_matched_policy[malformed-token]"
HEADER = "rbac_access_denied_matched_policy[token-header]"
NO_MATCH = "jwt_authn_access_denied{Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt}"
MISSING = "jwt_authn_access_denied{Jwt_is_missing}"
PASSED = "via_upstream"
Headers = Sequence[tuple[str, str]]


def now() -> datetime:
    return datetime.now(UTC)


def bearer(token: str) -> Headers:
    return (("Authorization", f"Bearer {token}"),)


@dataclass(frozen=True)
class Answer:
    """An answer, and what the application saw of the request if it came so far."""

    number: str
    status: int
    challenge: str
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.status == 200


class Web:
    """A client of a sidecar, which numbers its requests and finds them in the sidecar's log."""

    def __init__(self, workload: Workload, http: aiohttp.ClientSession) -> None:
        self.workload = workload
        self._http = http
        self._numbers = itertools.count(1)

    async def get(
        self, headers: Headers = (), *, path: str = "/", method: str = "GET", tls: ssl.SSLContext | None = None
    ) -> Answer:
        number = f"request-{next(self._numbers)}"
        scheme = "https" if tls else "http"
        url = URL(f"{scheme}://127.0.0.1:{self.workload.ports['inbound_web']}{path}", encoded=True)
        told = [*headers, ("x-request-id", number)]
        async with self._http.request(method, url, headers=told, ssl=tls or True) as answer:
            text, challenge = await answer.text(), answer.headers.get("www-authenticate", "")
        if answer.status != 200:
            return Answer(number, answer.status, challenge)
        seen = json.loads(text)
        return Answer(number, answer.status, challenge, seen["path"], dict(seen["headers"]))

    async def reasons(self, answers: Iterable[Answer]) -> list[str]:
        """What the log says of them, as soon as it does."""
        numbers = [answer.number for answer in answers]
        await until(lambda: set(numbers) <= self._log().keys())
        told = self._log()
        return [told[number] for number in numbers]

    async def judged(self, headers: Headers = (), *, path: str = "/") -> tuple[int, str]:
        answer = await self.get(headers, path=path)
        (reason,) = await self.reasons([answer])
        return answer.status, reason

    def _log(self) -> dict[str, str]:
        whole = self.workload.envoy.child.output.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return {line["request_id"]: line["details"] for line in lines if "request_id" in line}


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh() as mesh:
        yield mesh


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


async def started(
    mesh: Mesh, http: aiohttp.ClientSession, *rules: JWTRule, required: bool = False, **fetching: object
) -> Web:
    """A sidecar that takes plaintext, so that tokens alone decide."""
    tokens = TokenRules(rules, **fetching)  # type: ignore[arg-type]  # its other fields, by name
    inbound = letting_in(mode=Mode.DISABLE, require_token=required)
    return Web(await mesh.workload(None, inbound=(inbound,), tokens=tokens), http)


async def test_each_refusal_has_its_reason_and_mended_it_passes(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    web, at = await started(mesh, http, A_RULE), now()
    good = A.token(at)
    ended, later = int(at.timestamp()) - 61, int(at.timestamp()) + 3600
    stranger = TokenIssuer(place=22, issuer=A.issuer)
    faults = {
        "ended": (A.token(at, exp=ended), 401, "Jwt_is_expired"),
        "not begun": (A.token(at, nbf=later), 401, "Jwt_not_yet_valid"),
        "of another issuer": (A.token(at, iss="https://z.test"), 401, "Jwt_issuer_is_not_configured"),
        "for another audience": (A.token(at, aud=["bank"]), 403, "Audiences_in_Jwt_are_not_allowed"),
        "for nobody": (A.token(at, aud=None), 403, "Audiences_in_Jwt_are_not_allowed"),
        "changed": (good.rpartition(".")[0] + "." + A.token(at, sub="root").rpartition(".")[2], 401, "verification"),
        "of another key": (stranger.sign(A.payload(at), header={"kid": A.key_id}), 401, "Jwt_verification_fails"),
        "of an unknown key": (stranger.token(at), 401, "Jwks_doesn't_have_key_to_match_kid"),
        "without end": (A.token(at, exp=None), 401, "Jwt_verification_fails"),
        "no token": ("abc", 401, "Jwt_is_not_in_the_form_of_Header.Payload.Signature"),
    }
    before = await web.workload.count("http.inbound_web.jwt_authn.denied")
    for name, (token, status, reason) in faults.items():
        assert (await web.get(bearer(good))).passed
        found = await web.judged(bearer(token))
        assert found[0] == status, (name, found)
        assert reason in found[1], (name, found)
    assert await web.workload.count("http.inbound_web.jwt_authn.denied") == before + len(faults)
    assert (await web.get(bearer("abc"))).challenge.startswith("Bearer realm=")
    assert await web.judged() == (200, PASSED)
    second = int(now().timestamp())
    assert await web.judged(bearer(A.token(at, exp=second - 5, nbf=second + 55))) == (200, PASSED)  # clocks differ
    assert await web.judged((("Authorization", "Basic dTpw"),)) == (200, PASSED)


async def test_a_token_that_is_required(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    one = await started(mesh, http, A_RULE, required=True)
    several = await started(mesh, http, A_RULE, B_RULE, required=True)
    for web in (one, several):
        assert await web.judged() == (401, MISSING)
        assert await web.judged((("Authorization", "Basic dTpw"),)) == (401, MISSING)
        assert await web.judged((("Authorization", "Bearer"),)) == (401, MISSING)
        assert (await web.judged(bearer(A.token(now(), exp=1))))[0] == 401
        assert await web.judged(bearer(A.token(now()))) == (200, PASSED)
    assert await several.judged(bearer(B.token(now()))) == (200, PASSED)
    preflight = (("Origin", "https://shop.test"), ("Access-Control-Request-Method", "PUT"))
    assert (await one.get(preflight, method="OPTIONS")).passed
    assert (await one.get(preflight[:1], method="OPTIONS")).status == 401
    assert (await one.get(preflight[1:], method="OPTIONS")).status == 401
    assert (await one.get(preflight)).status == 401


async def test_only_a_valid_token_fills_the_headers_of_its_claims(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    outputs = {
        "x-sub": "sub", "x-pod": "org.pod", "x-number": "number", "x-true": "true", "x-list": "aud", "x-object": "org",
        "x-none": "missing", "x-dotted": "https://a.test/role",
    }  # fmt: skip
    claims = tuple(ClaimToHeader(header, claim) for header, claim in outputs.items())
    rule = JWTRule(issuer=A.issuer, jwks=A.jwks(), output_payload_to_header="x-payload", output_claim_to_headers=claims)
    web = await started(mesh, http, rule)
    said: dict[str, JSON] = {"sub": "alice", "org": {"pod": "web-0"}, "number": 7, "true": True}
    token = A.token(now(), **said)
    spoofed: Headers = [
        (spelling, "mallory") for name in (*outputs, "x-payload") for spelling in (name.title(), name.replace("-", "_"))
    ]
    seen = (await web.get((*spoofed, *bearer(token)))).headers
    assert "mallory" not in seen.values()
    assert {name: seen.get(name) for name in outputs} == {
        "x-sub": "alice", "x-pod": "web-0", "x-number": "7", "x-true": "true", "x-none": None, "x-dotted": None,
        "x-list": base64url(json.dumps([AUDIENCE]).encode()), "x-object": base64url(b'{"pod":"web-0"}'),
    }  # fmt: skip
    payload = seen["x-payload"]
    assert json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["org"] == {"pod": "web-0"}
    assert "=" not in payload
    preflight = (("Origin", "https://shop.test"), ("Access-Control-Request-Method", "PUT"))
    for answer in (await web.get(spoofed), await web.get((*spoofed, *preflight), method="OPTIONS")):
        assert answer.passed
        assert "mallory" not in answer.headers.values()


async def test_the_token_is_taken_out_unless_it_is_to_be_forwarded(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    places = {"from_headers": (JWTHeader("X-Token", "Token "),), "from_params": ("t",), "from_cookies": ("s", "t.$")}
    for forward in (False, True):
        rule = JWTRule(issuer=A.issuer, jwks=A.jwks(), forward_original_token=forward, **places)  # type: ignore[arg-type]  # its fields, by name
        web, token = await started(mesh, http, rule), A.token(now())
        by_header = await web.get((("X-Token", f"Token {token}"), *bearer("of the application")))
        assert (token in str(by_header.headers)) is forward
        assert by_header.headers["authorization"] == "Bearer of the application"  # no place of this rule
        by_param = await web.get(path=f"/a?b=1&t={token}&c=2")
        assert by_param.path == (f"/a?b=1&t={token}&c=2" if forward else "/a?b=1&c=2")
        for cookies, others in {
            f"a=1; s={token}; ss=2; b=s=3": "a=1; ss=2; b=s=3",
            f" t.$={token};a=1 ; ;flag": "a=1; ; flag",
            f's="{token}"': "",
        }.items():
            by_cookie = await web.get((("Cookie", cookies),))
            assert by_cookie.passed
            assert by_cookie.headers.get("cookie", "") == (cookies.strip() if forward else others)
        assert (await web.get((("Cookie", "a=1;b=2"),))).headers["cookie"] == "a=1;b=2"


async def test_one_token_in_one_place(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    other = JWTRule(
        issuer=B.issuer,
        jwks=B.jwks(),
        from_headers=(JWTHeader("X-Token"),),
        from_params=("b_token", "t"),
        from_cookies=("session",),
    )
    web, a, b = await started(mesh, http, A_RULE, other), A.token(now()), B.token(now())
    good: dict[str, tuple[Headers, str]] = {
        "authorization": (bearer(a), "/"),
        "two spaces": (bearer(f" {a}"), "/"),
        "default parameter": ((), f"/?access_token={a}"),
        "header": ((("X-Token", b),), "/"),
        "parameter": ((), f"/?x=1&b_token={b}"),
        "parameter, encoded": ((), f"/?b%5ftoken={b}"),
        "cookie": ((("Cookie", f"a=b; session={b}"),), "/"),
        "names that only resemble": ((("Cookie", f"xsession=1; session={b}"),), "/?my_b_token=1&tt=2&t2=3"),
        "beside credentials of another kind": ((("Authorization", "Basic dTpw"), ("X-Token", b)), "/"),
    }
    several: dict[str, tuple[Headers, str]] = {
        "of two issuers": ((*bearer(a), ("X-Token", b)), "/"),
        "header and parameter": (bearer(a), f"/?access_token={a}"),
        "header and encoded parameter": (bearer(a), f"/?access%5Ftoken={a}"),
        "header and cookie": ((("X-Token", b), ("Cookie", f"session={b}")), "/"),
        "one good, one not": ((*bearer(a), ("X-Token", B.token(now(), exp=1))), "/"),
        "two parameters": ((), f"/?b_token={b}&t={b}"),
        "a parameter twice": ((), f"/?t={b}&x=1&t={b}"),
        "a parameter twice, once encoded": ((), f"/?%74={b}&t=1"),
        "a parameter twice, once empty": ((), f"/?t={b}&t"),
        "a cookie twice": ((("Cookie", f"session={b}; session={b}"),), "/"),
        "two cookie headers": ((("Cookie", f"session={b}"), ("Cookie", f"a=b; session={b}")), "/"),
    }
    malformed: dict[str, tuple[Headers, str]] = {
        "small letters": ((("Authorization", f"bearer {a}"),), "/"),
        "capitals": ((("Authorization", f"BEARER {a}"),), "/"),
        "something in front": ((("Authorization", f"x Bearer {a}"),), "/"),
        "something behind": (bearer(f"{a} x"), "/"),
        "two in one value": (bearer(f"{a}, Bearer {a}"), "/"),
        "a header twice": ((*bearer(a), *bearer(a)), "/"),
        "a header twice, once of another kind": ((*bearer(a), ("Authorization", "Basic dTpw")), "/"),
        "a bare header twice": ((("X-Token", b), ("X-Token", b)), "/"),
        "a bare header with a prefix": ((("X-Token", f"Bearer {b}"),), "/"),
    }
    for expected, requests in (((200, PASSED), good), ((401, SEVERAL), several), ((401, MALFORMED), malformed)):
        answers = {name: await web.get(headers, path=path) for name, (headers, path) in requests.items()}
        reasons = await web.reasons(answers.values())
        found = {name: (answer.status, reason) for (name, answer), reason in zip(answers.items(), reasons, strict=True)}
        assert found == dict.fromkeys(requests, expected)
    refused = await web.get((*bearer(a), ("X-Token", b)))
    assert refused.challenge == 'Bearer error="invalid_request"'
    # A token of one issuer at the other's place is nobody's there.
    assert (await web.judged((("X-Token", a),)))[0] == 401
    assert (await web.judged(bearer(b)))[0] == 401


async def test_several_issuers_at_one_place(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    second_keys = TokenIssuer(place=23, issuer=A.issuer)
    again, lost = JWTRule(issuer=A.issuer, jwks=second_keys.jwks()), JWTRule(issuer="https://lost.test")
    web = await started(mesh, http, A_RULE, B_RULE, again, lost)
    assert await web.judged() == (200, PASSED)
    for token in (A.token(now()), B.token(now()), second_keys.token(now())):
        assert await web.judged(bearer(token)) == (200, PASSED)
    assert (await web.judged(bearer(B.token(now(), exp=1))))[0] == 401
    assert (await web.judged(bearer(A.token(now(), iss=B.issuer))))[0] == 401
    # The issuer whose keys could not be had: no token of it is taken, whoever signed.
    for header in ({}, {"kid": "nobody"}, {"kid": None}):
        forged = A.sign(A.payload(now(), iss="https://lost.test"), header=header)
        assert (await web.judged(bearer(forged)))[0] == 401


async def test_who_calls_comes_from_tls_and_on_whose_behalf_from_the_token(
    mesh: Mesh, http: aiohttp.ClientSession, authority: FakeAuthority
) -> None:
    rule = JWTRule(issuer=A.issuer, jwks=A.jwks(), output_claim_to_headers=(ClaimToHeader("x-user", "sub"),))
    inbound = letting_in(FRONTEND, mode=Mode.PERMISSIVE)
    context = holding(authority.svid(BACKEND.path), authority.bundle())
    web = Web(await mesh.workload(context, inbound=(inbound,), tokens=TokenRules((rule,))), http)
    tls, token = mesh.client(authority.svid(FRONTEND.path)), A.token(now(), sub="alice")
    forged = (("x-forwarded-client-cert", f"URI={FRONTEND}"), ("x-user", "root"))
    by_tls = await web.get((*forged, *bearer(token)), tls=tls)
    assert f"URI={FRONTEND}" in by_tls.headers["x-forwarded-client-cert"]
    assert by_tls.headers["x-user"] == "alice"
    in_plaintext = await web.get((*forged, *bearer(token)))
    assert "x-forwarded-client-cert" not in in_plaintext.headers
    assert in_plaintext.headers["x-user"] == "alice"
    for over in (tls, None):
        assert (await web.get(bearer(A.token(now(), exp=1)), tls=over)).status == 401
        assert "x-user" not in (await web.get(forged, tls=over)).headers


async def test_keys_come_over_https_are_rotated_and_outlive_an_outage(
    mesh: Mesh, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with KeyServer(tmp_path) as server:
        old, new = server.tokens, TokenIssuer(place=24, issuer=server.tokens.issuer)
        rule = JWTRule(issuer=old.issuer, jwks_uri=server.url)
        web = await started(mesh, http, rule, ca_file=str(server.ca), refresh=timedelta(seconds=1))
        assert await web.judged(bearer(old.token(now()))) == (200, PASSED)
        assert await web.judged(bearer(new.token(now()))) == (401, NO_MATCH)
        server.keys = new.jwks()

        async def is_rotated() -> bool:
            return (await web.get(bearer(new.token(now())))).passed

        async def is_away() -> bool:
            return await web.workload.count("http.inbound_web.jwt_authn.jwks_fetch_failed") > 0

        assert await holds_within(60, is_rotated)
        assert await web.judged(bearer(old.token(now()))) == (401, NO_MATCH)
        server.misbehave(says("<html>", status=503))
        assert await holds_within(60, is_away)
        assert await web.judged(bearer(new.token(now()))) == (200, PASSED)


async def test_a_server_that_nobody_vouches_for_gives_no_keys(
    mesh: Mesh, http: aiohttp.ClientSession, tmp_path: Path, foreign_authority: FakeAuthority
) -> None:
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(write_certificates((foreign_authority.certificate,)))
    async with KeyServer(tmp_path) as server:
        token, by_address = server.tokens.token(now()), f"https://127.0.0.1:{server.port}/keys"
        cases = ((server.url, foreign, "fail_verify_error"), (by_address, server.ca, "fail_verify_san"))
        for uri, ca_file, counter in cases:
            rule = JWTRule(issuer=server.tokens.issuer, jwks_uri=uri)
            web = await started(mesh, http, rule, ca_file=str(ca_file))
            status, reason = await web.judged(bearer(token))
            assert (status, reason) == (401, "jwt_authn_access_denied{Jwks_remote_fetch_is_failed}")
            host = "localhost" if uri == server.url else "127.0.0.1"
            assert await web.workload.count(f"cluster.keys_https_{host}_{server.port}.ssl.{counter}") > 0
            assert await web.judged() == (200, PASSED)
            assert server.asked == []
        good = JWTRule(jwks_uri=server.url)  # whoever these keys sign for
        web = await started(mesh, http, good, ca_file=str(server.ca))
        for issuer in (server.tokens.issuer, "https://any.test"):
            assert await web.judged(bearer(server.tokens.token(now(), iss=issuer))) == (200, PASSED)


# What Envoy takes and our own verifier does not. All of it is signed by the issuer's own key.
ENVOY_IS_LENIENT = {
    "stray bits": "a signature in another spelling",
    "signature one byte long": "a signature with a byte behind it",
    "space in front": "of Authorization, which may have several spaces (RFC 9110 11.4), not of the token",
    "key name empty": "counts as no name, so that all keys are tried",
    "claims with single quotes": "its JSON parser takes them",
    "claims nested 60 times": "it bounds the depth at 100",
    "claims nested in an object 60 times": "it bounds the depth at 100",
    "made in an hour": "it does not look at iat",
    "lives too long": "Istio's policy has no bound for that",
    "lives too long and does not say since when": "Istio's policy has no bound for that",
    "lives for ever": "Istio's policy has no bound for that",
}
NO_HEADER_HAS_IT = {"line feed behind", "zero byte behind"}  # HTTP itself refuses the request
NO_TOKEN = {"nothing"}  # `Authorization: Bearer` alone is none, and a request without one passes


async def test_hostile_tokens_are_refused_by_both_engines(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    web, at = await started(mesh, http, A_RULE), now()
    corpus = {name: one.text for name, one in hostile_tokens(A, at).items() if name not in NO_HEADER_HAS_IT}
    answers = {name: await web.get(bearer(text)) for name, text in corpus.items() if len(text) < 60_000}
    assert len(answers) > 150
    assert {name for name, answer in answers.items() if answer.passed} == ENVOY_IS_LENIENT.keys() | NO_TOKEN
    assert not any(ours(text, A.keys(), at) for text in corpus.values())
    assert (await web.get(bearer(A.token(at)))).passed
    refused = [name for name in answers if name.startswith(("crit", "jwk", "jku", "x5")) and "beside" in name]
    assert set(await web.reasons(answers[name] for name in refused)) == {HEADER}


async def test_good_tokens_pass_both_engines(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    issuers = {name: TokenIssuer(name, place=20) for name in ("ES256", "ES384", "ES512", "RS256", "RS512", "PS384")}
    entries: list[JSON] = [issuer.jwk(alg=None) for issuer in issuers.values()]
    key_set, issuer = json.dumps({"keys": entries}), issuers["ES256"]
    web = await started(mesh, http, JWTRule(issuer=issuer.issuer, jwks=key_set, audiences=(AUDIENCE, "other")))
    at = now()
    second = int(at.timestamp())
    tokens = {  # the first must come before the clocks differ too much
        "ended within the difference of clocks": issuer.token(at, exp=second - 5),
        "begins within the difference of clocks": issuer.token(at, nbf=second + 55),
    }
    tokens |= {name: one.token(at) for name, one in issuers.items()} | {
        "one audience": issuer.token(at, aud=AUDIENCE),
        "one of several audiences": issuer.token(at, aud=["x", "other"]),
        "without name of the key": issuer.sign(issuer.payload(at), header={"kid": None}),
        "with a type": issuer.sign(issuer.payload(at), header={"typ": "at+jwt"}),
        "without beginning": issuer.token(at, nbf=None, iat=None),
        "with a fraction of a second": issuer.token(at, exp=second + 60.5),
        "with much to say": issuer.token(at, filler="x" * 6_000),
    }
    answers = [await web.get(bearer(token)) for token in tokens.values()]
    reasons = dict(zip(tokens, await web.reasons(answers), strict=True))
    assert reasons == dict.fromkeys(tokens, PASSED)
    keys = KeySet.from_json(key_set)
    assert {name: ours(token, keys, at, issuer=issuer.issuer) for name, token in tokens.items()} == dict.fromkeys(
        tokens, True
    )


async def test_envoy_takes_an_audience_with_another_scheme_or_slash(mesh: Mesh, http: aiohttp.ClientSession) -> None:
    rule = JWTRule(issuer=A.issuer, jwks=A.jwks(), audiences=("https://web.test/",))
    web, at = await started(mesh, http, rule), now()
    for audience, envoy in {
        "https://web.test/": 200,
        "http://web.test": 200,
        "web.test": 200,
        "web.test/a": 403,
    }.items():
        token = A.token(at, aud=audience)
        assert (await web.get(bearer(token))).status == envoy
        assert ours(token, A.keys(), at, audience="https://web.test/") is (audience == "https://web.test/")


def ours(token: str, keys: KeySet, at: datetime, *, issuer: str = A.issuer, audience: str = AUDIENCE) -> bool:
    """Whether our own verifier takes a token."""
    try:
        verify_token(token, keys, issuer=issuer, audiences={audience, "other"}, now=at, longest_life=LONGEST_LIFE)
    except TokenRefused:
        return False
    return True


async def test_grpc_hears_that_it_is_not_authenticated(mesh: Mesh) -> None:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        found = dict(context.invocation_metadata() or ())
        return str(found.get("x-user", "nobody")).encode()

    server = grpc.aio.server()
    handlers = {"Who": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Users", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    rule = replace(A_RULE, output_claim_to_headers=(ClaimToHeader("x-user", "sub"),))
    inbound = letting_in(mode=Mode.DISABLE, protocol=Protocol.HTTP2, require_token=True)
    inbound = replace(inbound, forward=HostPort("127.0.0.1", port))
    web = await mesh.workload(None, inbound=(inbound,), tokens=TokenRules((rule,)), own_application=False)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{web.ports['inbound_web']}") as channel:
        call = channel.unary_unary("/test.Users/Who", request_serializer=bytes, response_deserializer=bytes)
        token = ("authorization", f"Bearer {A.token(now(), sub='alice')}")
        for metadata in ((), (("authorization", "Bearer abc"),), (token, token)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await call(b"", metadata=(token, ("x-user", "root"))) == b"alice"
    await server.stop(None)
