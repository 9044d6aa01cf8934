"""The `spiffe` package and we agree on JWT-SVIDs, and where we do not, the standard is with us."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from istio_auth.errors import IstioAuthError
from istio_auth.jwks import ALGORITHMS
from istio_auth.jwt_bundle import JWTBundle
from istio_auth.jwt_svid import validate_jwt_svid
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON
from tests.fakes.token_issuer import TokenIssuer

Ask = Callable[[dict[str, JSON]], dict[str, str]]

TD, WEB, AUDIENCE = TrustDomain("cluster.local"), "spiffe://cluster.local/ns/default/sa/web", "db"
ISSUER = TokenIssuer()


@pytest.fixture(scope="module")
def theirs() -> Generator[Ask]:
    """Asks the other implementation."""
    command = [sys.executable, "-m", "tests.interop.spiffe_jwt"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sending, receiving = process.stdin, process.stdout

        def ask(question: dict[str, JSON]) -> dict[str, str]:
            sending.write(json.dumps(question) + "\n")
            sending.flush()
            answer: dict[str, str] = json.loads(receiving.readline())
            return answer

        yield ask
        sending.close()
    assert process.returncode == 0


def payload(**changes: JSON) -> dict[str, JSON]:
    now = int(time.time())
    made: dict[str, JSON] = {"sub": WEB, "aud": [AUDIENCE], "iat": now, "exp": now + 300}
    return {name: value for name, value in (made | changes).items() if value is not None}


def bundle(issuer: TokenIssuer = ISSUER, **changes: JSON) -> str:
    return json.dumps({"keys": [issuer.jwk(**{"use": "jwt-svid", "alg": None, **changes})]})


def ours(token: str, keys: str) -> str | None:
    """The SPIFFE ID that we find; None if we refuse."""
    try:
        found = JWTBundle.from_json(TD, keys)
        return str(validate_jwt_svid(token, found, audience=AUDIENCE, now=datetime.now(UTC)).id)
    except IstioAuthError:
        return None


def their_verdict(theirs: Ask, token: str, keys: str) -> str | None:
    asked: dict[str, JSON] = {"token": token, "bundle": keys, "trust_domain": TD.name, "audience": AUDIENCE}
    return theirs(asked).get("spiffe_id")


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_token_of_each_algorithm_is_good_for_both(theirs: Ask, algorithm: str) -> None:
    issuer = TokenIssuer(algorithm)
    for aud in (AUDIENCE, [AUDIENCE], ["other", AUDIENCE]):
        token = issuer.sign(payload(aud=aud), header={"typ": "JWT"})  # type: ignore[arg-type]  # a list is JSON
        keys = bundle(issuer, alg=algorithm)  # without it, their parser takes each RSA key to be for RS256
        assert ours(token, keys) == their_verdict(theirs, token, keys) == WEB


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_token_that_their_library_makes_is_good_for_us(theirs: Ask, algorithm: str) -> None:
    made = theirs({"algorithm": algorithm, "payload": payload()})
    assert ours(made["token"], made["bundle"]) == WEB
    assert ours(made["token"], bundle()) is None


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        ({"exp": 1}, {}),
        ({"exp": None}, {}),
        ({"aud": None}, {}),
        ({"aud": "other"}, {}),
        ({"sub": None}, {}),
        ({"sub": "web"}, {}),
        ({"sub": "spiffe://partner.test/web"}, {}),
        ({"nbf": 2**40}, {}),
        ({}, {"alg": "HS256"}),
        ({}, {"alg": "none"}),
        ({}, {"alg": "ES384"}),
        ({}, {"typ": "wit+jwt"}),
        ({}, {"kid": "x"}),
        ({}, {"crit": ["x"]}),
    ],
    ids=str,
)
def test_a_token_with_a_fault_is_refused_by_both(
    theirs: Ask, changes: dict[str, JSON], header: dict[str, JSON]
) -> None:
    wrong, good = ISSUER.sign(payload(**changes), header=header), ISSUER.sign(payload())
    assert (ours(wrong, bundle()), their_verdict(theirs, wrong, bundle())) == (None, None)
    assert ours(good, bundle()) == their_verdict(theirs, good, bundle()) == WEB


class TestWhereTheyAreLax:
    """And would take what the standard refuses, or refuse what it allows."""

    @pytest.mark.parametrize("header", [{"jku": "https://evil.test"}, {"x5t": "x"}, {"cty": "JWT"}], ids=str)
    def test_the_header_is_closed(self, theirs: Ask, header: dict[str, JSON]) -> None:
        token = ISSUER.sign(payload(), header=header)
        assert (ours(token, bundle()), their_verdict(theirs, token, bundle())) == (None, WEB)

    @pytest.mark.parametrize("use", ["x509-svid", "wit-svid", "sig", None])
    def test_keys_for_something_else_sign_no_jwt_svid(self, theirs: Ask, use: str | None) -> None:
        token, keys = ISSUER.sign(payload()), bundle(use=use)
        assert (ours(token, keys), their_verdict(theirs, token, keys)) == (None, WEB)

    def test_a_token_need_not_name_its_key(self, theirs: Ask) -> None:
        token = ISSUER.sign(payload(), header={"kid": None})
        assert (ours(token, bundle()), their_verdict(theirs, token, bundle())) == (WEB, None)

    def test_one_entry_without_a_name_does_not_spoil_the_others(self, theirs: Ask) -> None:
        token = ISSUER.sign(payload())
        nameless: JSON = TokenIssuer(place=5).jwk(use="jwt-svid", kid=None)
        keys = json.dumps({"keys": [nameless, *json.loads(bundle())["keys"]]})
        assert (ours(token, keys), their_verdict(theirs, token, keys)) == (WEB, None)
