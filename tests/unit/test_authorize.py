"""Which peers are welcome."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from istio_auth.authorize import Authorizer, admit, any_id, in_namespace, is_id, member_of, one_of
from istio_auth.errors import Code, ConfigurationError, NotAuthorized
from istio_auth.spiffe_id import SpiffeID, TrustDomain

TD = TrustDomain("cluster.local")
WEB = SpiffeID.for_service_account(TD, "default", "web")
DB = SpiffeID.for_service_account(TD, "storage", "db")
AGENT = SpiffeID.for_agent(TD, "node-1")
FOREIGN_WEB = SpiffeID.for_service_account(TrustDomain("foreign.test"), "default", "web")
EVERYBODY = {WEB, DB, AGENT, FOREIGN_WEB}


async def asked_later(_peer: SpiffeID) -> None:
    """What nobody waits for decides nothing."""


NO_AUTHORIZERS: dict[str, Callable[[SpiffeID], object]] = {
    "a predicate that says no": lambda _peer: False,
    "a predicate that says yes": lambda _peer: True,
    "is_id, not called": is_id,
    "one_of, not called": one_of,
    "member_of, not called": member_of,  # type: ignore[dict-item]  # the mistake
    "in_namespace, not called": in_namespace,  # type: ignore[dict-item]  # the mistake
}


@pytest.mark.parametrize("mistaken", NO_AUTHORIZERS.values(), ids=list(NO_AUTHORIZERS))
def test_whatever_answers_instead_of_deciding_admits_nobody(mistaken: Authorizer) -> None:
    with pytest.raises(NotAuthorized, match="must return None for a welcome peer"):
        admit(WEB, mistaken)
    admit(WEB, any_id())


@pytest.mark.filterwarnings("ignore:coroutine 'asked_later' was never awaited:RuntimeWarning")
def test_an_authorizer_that_nobody_waits_for_admits_nobody() -> None:
    with pytest.raises(NotAuthorized, match="answered with coroutine"):
        admit(WEB, asked_later)  # type: ignore[arg-type]  # the mistake


def test_a_text_in_the_place_of_a_name_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"give SpiffeID.parse\('spiffe://a/b'\)"):
        is_id("spiffe://a/b")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ConfigurationError, match=r"give TrustDomain\('a'\)"):
        member_of("a")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ConfigurationError, match=r"give TrustDomain\('a'\)"):
        in_namespace("a", "shop")  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize(
    ("authorize", "welcome"),
    [
        (any_id(), EVERYBODY),
        (is_id(WEB), {WEB}),
        (one_of(WEB, DB), {WEB, DB}),
        (one_of(), set()),
        (member_of(TD), {WEB, DB, AGENT}),
        (in_namespace(TD, "default"), {WEB}),
        (in_namespace(TD, "default", "storage"), {WEB, DB}),
        (in_namespace(TD), set()),
        (in_namespace(TD, "node-1"), set()),
    ],
    ids=lambda value: None if isinstance(value, set) else str(value),
)
def test_exactly_these_peers_are_welcome(authorize: Authorizer, welcome: set[SpiffeID]) -> None:
    for peer in EVERYBODY:
        if peer in welcome:
            authorize(peer)
        else:
            with pytest.raises(NotAuthorized) as caught:
                authorize(peer)
            assert caught.value.code is Code.NOT_AUTHORIZED
            assert str(peer) not in caught.value.public


def test_a_path_that_only_looks_like_a_service_account_is_in_no_namespace() -> None:
    with pytest.raises(NotAuthorized):
        in_namespace(TD, "default")(SpiffeID(TD, "/ns/default/sa/web/extra"))


def test_a_name_that_only_begins_alike_is_another() -> None:
    for path in (WEB.path + "2", WEB.path + "/x", WEB.path[:-1], WEB.path.upper()):
        with pytest.raises(NotAuthorized):
            is_id(WEB)(SpiffeID(TD, path))
