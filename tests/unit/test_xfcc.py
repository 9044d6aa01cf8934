"""What a proxy says of its client is read from its own words alone, and anything in doubt is refused."""

from __future__ import annotations

import pytest

from istio_auth.errors import Code
from istio_auth.spiffe_id import SpiffeID
from istio_auth.xfcc import MAX_HEADER, InvalidXFCC, XFCCElement, forwarded_id, last_element

PROXY = SpiffeID.parse("spiffe://cluster.local/ns/edge/sa/gateway")
CALLER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/web")
VICTIM = "spiffe://cluster.local/ns/shop/sa/admin"
HASH = "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688"
ENVOYS = f'By={PROXY};Hash={HASH};Subject="O=shop,CN=web";URI={CALLER}'


def test_what_envoy_writes_is_read() -> None:
    assert last_element(f"{ENVOYS};DNS=web.shop;DNS=www.shop") == XFCCElement(
        by=(str(PROXY),),
        uris=(str(CALLER),),
        dns_names=("web.shop", "www.shop"),
        subject="O=shop,CN=web",
        fingerprint=HASH,
    )
    assert forwarded_id(ENVOYS, proxy=PROXY) == CALLER


@pytest.mark.parametrize(
    "before",
    [
        f"By={PROXY};Hash={HASH};URI={VICTIM}",
        f'By={PROXY};URI={VICTIM};Subject="',
        'Subject="\\',
        'Subject="a\\\\',
        '"""',
        "\\",
        "nonsense",
        "",
        ",,,",
        f'Subject=",URI={VICTIM}',
    ],
)
def test_only_the_last_element_counts_whatever_stands_before_it(before: str) -> None:
    assert forwarded_id(f"{before},{ENVOYS}", proxy=PROXY) == CALLER


@pytest.mark.parametrize("subject", [r"CN=a\\", r"CN=a\"b", "CN=a,O=b;c=d", r"CN=\",URI=spiffe://x/y;X=\"", ""])
def test_quotes_in_the_last_element_hide_what_is_in_them(subject: str) -> None:
    header = f'URI={VICTIM},By={PROXY};Subject="{subject}";URI={CALLER}'
    assert forwarded_id(header, proxy=PROXY) == CALLER
    assert last_element(header).subject == subject.replace(r"\"", '"').replace(r"\\", "\\")


def test_keys_are_told_without_case_and_unknown_ones_are_passed_over() -> None:
    assert forwarded_id(f"BY={PROXY};uri={CALLER};Later=x", proxy=PROXY) == CALLER
    assert forwarded_id(f"  URI={CALLER} ", proxy=PROXY) == CALLER


@pytest.mark.parametrize("header", [f"By={PROXY};Hash={HASH}", f'By={PROXY};Subject="";URI=', "DNS=web.shop"])
def test_a_client_without_uri_name_is_nobody(header: str) -> None:
    assert forwarded_id(header, proxy=PROXY) is None


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (f"By={VICTIM};URI={CALLER}", "not what it saw itself"),
        (f"By={PROXY};By={VICTIM};URI={CALLER}", "not what it saw itself"),
        (f"URI={CALLER};URI={VICTIM}", "2 URI names"),
        (f"URI={CALLER};URI={CALLER}", "2 URI names"),
        ("URI=https://shop.test/web", "no SPIFFE ID"),
        ("URI=spiffe://cluster.local/a/../b", "no SPIFFE ID"),
        ("URI=spiffe://cluster.local", "no workload"),
        (f"Hash={HASH};Hash={HASH};URI={CALLER}", "hash twice"),
        (f'Subject="a";subject="b";URI={CALLER}', "subject twice"),
        ("", "empty"),
        (f"{ENVOYS},", "empty"),
        (f"{ENVOYS};", "malformed"),
        (f"{ENVOYS};;", "malformed"),
        (f"URI = {CALLER}", "malformed"),
        (f'URI="{CALLER}', "malformed"),
        (f'URI="{CALLER}"x', "malformed"),
        (f'URI={CALLER}"', "malformed"),
        (f"URI={CALLER};a=b=c", "malformed"),
        (f"={CALLER}", "malformed"),
        ("URI", "malformed"),
        (f"{'x' * MAX_HEADER},{ENVOYS}", "at most"),
    ],
)
def test_a_header_in_doubt_is_refused(header: str, reason: str) -> None:
    with pytest.raises(InvalidXFCC, match=reason) as caught:
        forwarded_id(header, proxy=PROXY)
    assert caught.value.code is Code.MALFORMED
    assert VICTIM not in caught.value.public


@pytest.mark.parametrize("header", ["By={}", "URI={}", "URI=spiffe://cluster.local/{}", "{}=", "{0}=1;{0}=2"])
def test_a_long_header_makes_no_long_line_in_the_log(header: str) -> None:
    with pytest.raises(InvalidXFCC) as caught:
        forwarded_id(header.format("x" * 20_000) + ';x="', proxy=PROXY)
    assert len(str(caught.value)) < 1000
    with pytest.raises(InvalidXFCC) as caught:
        forwarded_id(f"{header.format('x' * 20_000)};URI=x;URI=y", proxy=PROXY)
    assert len(str(caught.value)) < 1000
