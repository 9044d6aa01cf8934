"""find_token: the one token of a request, wherever its rules say that it may stand."""

from __future__ import annotations

import pytest

from istio_auth.errors import ConfigurationError
from istio_auth.tokens import MAX_TOKEN, TokenFault, TokenRefused
from istio_auth.tokens.locations import (
    DEFAULT_LOCATIONS,
    FoundToken,
    Headers,
    InCookie,
    InHeader,
    InQuery,
    TokenLocation,
    find_token,
)

BEARER, QUERY = DEFAULT_LOCATIONS
OWN = InHeader("X-Token")
COOKIE = InCookie("session")
EVERYWHERE = (*DEFAULT_LOCATIONS, OWN, COOKIE)


def found(headers: Headers, query: str | bytes = "", *, at: tuple[TokenLocation, ...] = EVERYWHERE) -> str | None:
    token = find_token(at, headers, query)
    return token.token if token else None


def refused(headers: Headers, query: str | bytes = "") -> TokenFault:
    with pytest.raises(TokenRefused) as caught:
        find_token(EVERYWHERE, headers, query)
    assert "secret" not in str(caught.value)
    return caught.value.fault


class TestATokenIsFound:
    @pytest.mark.parametrize(
        "name", ["Authorization", "authorization", "AUTHORIZATION", b"authorization", b"aUTHORIZATION"]
    )
    def test_in_a_header_of_any_case(self, name: str | bytes) -> None:
        value = b"Bearer a.b.c" if isinstance(name, bytes) else "Bearer a.b.c"
        assert find_token(DEFAULT_LOCATIONS, [("accept", "*/*"), (name, value)]) == FoundToken("a.b.c", BEARER)

    def test_in_a_header_without_a_prefix(self) -> None:
        assert find_token(EVERYWHERE, [("x-token", "a.b.c")]) == FoundToken("a.b.c", OWN)

    @pytest.mark.parametrize(
        "query", ["access_token=a.b.c", b"access_token=a.b.c", "x=1&access_token=a.b.c&y", "access%5Ftoken=a%2Eb%2ec"]
    )
    def test_in_the_query(self, query: str | bytes) -> None:
        assert find_token(DEFAULT_LOCATIONS, [], query) == FoundToken("a.b.c", QUERY)

    @pytest.mark.parametrize(
        "value", ["session=a.b.c", "x=1; session=a.b.c; y=2", 'session="a.b.c"', "x; session=a.b.c;"]
    )
    def test_in_a_cookie(self, value: str) -> None:
        assert find_token(EVERYWHERE, [(b"cookie", b"z=1"), ("Cookie", value)]) == FoundToken("a.b.c", COOKIE)


class TestThereIsNoToken:
    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("accept", "a.b.c")],
            [("authorization", "Basic YTpi")],
            [("authorization", "Bearera.b.c")],
            [("authorization", " Bearer a.b.c")],
            [("authorization", "Bearer ")],
            [("authorization", "Bearer")],
            [("x-token", "")],
            [("cookie", "Session=a.b.c; sessions=a.b.c; =a.b.c; session; session=")],
            [("set-cookie", "session=a.b.c")],
        ],
    )
    def test_in_other_headers(self, headers: Headers) -> None:
        assert found(headers) is None

    @pytest.mark.parametrize(
        "query", ["", "access_token", "access_token=", "Access_Token=a.b.c", "x=access_token=a.b.c"]
    )
    def test_in_other_parameters(self, query: str) -> None:
        assert found([], query) is None

    def test_at_places_that_no_rule_names(self) -> None:
        everywhere = [("authorization", "Bearer a.b.c"), ("cookie", "session=a.b.c")]
        assert found(everywhere, "access_token=a.b.c", at=(OWN,)) is None


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([("authorization", "Bearer secret.1"), ("authorization", "Bearer secret.2")], ""),
        ([("authorization", "Bearer secret.1"), ("x-token", "secret.2")], ""),
        ([("authorization", "Bearer secret.1")], "access_token=secret.2"),
        ([], "access_token=secret.1&access_token=secret.2"),
        ([("cookie", "session=secret.1; session=secret.2")], ""),
        ([("cookie", "session=secret.1"), ("cookie", "session=secret.2")], ""),
        ([("authorization", "Bearer secret.1")], "access_token=secret.1"),  # the same, and more than one place
        ([("authorization", "Bearer secret.1"), ("x-token", "secret.1")], ""),
        ([("x-token", "secret.1"), ("x-token", "secret.1")], ""),
        ([("cookie", "session=secret.1; session=secret.1")], ""),
    ],
)
def test_more_than_one_token_is_refused_whichever_is_good(headers: Headers, query: str) -> None:
    assert refused(headers, query) is TokenFault.SEVERAL


def test_what_follows_the_prefix_is_taken_as_it_is() -> None:
    # It is no token then, and refused as one: not cut to what might be meant.
    assert found([("authorization", "Bearer  a.b.c")]) == " a.b.c"
    assert found([("authorization", "Bearer a.b.c, Bearer d.e.f")]) == "a.b.c, Bearer d.e.f"
    assert found([(b"authorization", b"Bearer \xff\x00")]) == "\xff\x00"


def test_what_is_too_long_for_a_token_is_not_even_decoded() -> None:
    assert found([], "access_token=" + "%41" * MAX_TOKEN) == "A" * MAX_TOKEN
    assert refused([], "access_token=" + "%41" * (MAX_TOKEN + 1)) is TokenFault.TOO_LONG
    assert found([], "other=" + "%41" * (MAX_TOKEN + 1)) is None
    assert found([], f"{'%61' * 100_000}=a&access_token=b") == "b"
    assert found([], "%C3%A9=a", at=(InQuery("é"),)) == "a"


@pytest.mark.parametrize("value", ["bearer secret.1", "BEARER secret.1", "bEARER "])
def test_a_prefix_in_other_letters_is_no_reason_to_overlook_a_token(value: str) -> None:
    assert refused([("authorization", value)]) is TokenFault.MALFORMED
    assert refused([("authorization", value)], "access_token=secret.2") is TokenFault.MALFORMED


def test_a_header_is_read_by_its_longest_prefix() -> None:
    bare, bearer, special = (
        InHeader("authorization"),
        InHeader("authorization", "Bearer "),
        InHeader("authorization", "Be"),
    )
    for order in ((bare, bearer, special), (special, bearer, bare)):
        read = {value: find_token(order, [("authorization", value)]) for value in ("Bearer a", "Be a", "a", "Bearer ")}
        assert read == {
            "Bearer a": FoundToken("a", bearer),
            "Be a": FoundToken(" a", special),
            "a": FoundToken("a", bare),
            "Bearer ": None,
        }


@pytest.mark.parametrize("name", ["", " ", "a b", "a:", "ä", "a\n"])
def test_a_location_has_a_name(name: str) -> None:
    for kind in (InHeader, InCookie):
        with pytest.raises(ConfigurationError):
            kind(name)
    with pytest.raises(ConfigurationError):
        InQuery("")
