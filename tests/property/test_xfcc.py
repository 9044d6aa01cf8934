"""No client can shift the border of the element that its proxy appends, and every text is read or refused."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from istio_auth.spiffe_id import SpiffeID
from istio_auth.xfcc import InvalidXFCC, XFCCElement, forwarded_id, last_element

PROXY = SpiffeID.parse("spiffe://cluster.local/ns/edge/sa/gateway")
CALLER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/web")

hostile = st.text(alphabet='",;=\\ aBy', max_size=40) | st.text(max_size=40)
names = st.lists(st.from_regex(r"[a-z0-9./:-]{1,20}", fullmatch=True), max_size=3).map(tuple)
elements = st.builds(
    XFCCElement,
    by=names,
    uris=names,
    dns_names=names,
    subject=st.text(max_size=20),
    fingerprint=st.from_regex(r"[0-9a-f]{0,64}", fullmatch=True),
)


def written(element: XFCCElement) -> str:
    """The element as a proxy writes it; written anew from the format, not taken from the module under test."""
    subject = element.subject.replace("\\", "\\\\").replace('"', '\\"')
    pairs = [f"By={name}" for name in element.by]
    pairs += [f"Hash={element.fingerprint}", f'Subject="{subject}"']
    pairs += [f"URI={name}" for name in element.uris] + [f"DNS={name}" for name in element.dns_names]
    return ";".join(pairs)


@given(elements)
def test_an_element_is_read_as_it_was_written(element: XFCCElement) -> None:
    assert last_element(written(element)) == element


@given(hostile, elements)
def test_what_a_client_sends_changes_nothing_of_what_its_proxy_says(before: str, element: XFCCElement) -> None:
    assert last_element(f"{before},{written(element)}") == element


@given(hostile)
def test_no_text_is_anything_but_read_or_refused(header: str) -> None:
    with contextlib.suppress(InvalidXFCC):
        last_element(header)


@given(hostile, st.text(max_size=20))
def test_nobody_becomes_another_by_his_subject_or_his_header(before: str, subject: str) -> None:
    element = XFCCElement((str(PROXY),), (str(CALLER),), (), subject, "")
    assert forwarded_id(f"{before},{written(element)}", proxy=PROXY) == CALLER
