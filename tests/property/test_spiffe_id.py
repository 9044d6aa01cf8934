"""Every ID of the grammar survives a round trip, and no text at all does anything but parse or be refused."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from istio_auth.errors import InvalidSpiffeID
from istio_auth.spiffe_id import SpiffeID

# Written anew from the standard, not taken from the module under test.
GRAMMAR = re.compile(r"spiffe://[a-z0-9.\-_]{1,255}(/(?!\.{1,2}(/|\Z))[a-zA-Z0-9.\-_]+)*\Z")

segments = st.from_regex(r"[a-zA-Z0-9._-]{1,20}", fullmatch=True).filter(lambda text: text not in (".", ".."))
names = st.from_regex(r"[a-z0-9._-]{1,255}", fullmatch=True)
spelled = st.builds(
    lambda name, parts: f"spiffe://{name}" + "".join(f"/{part}" for part in parts), names, st.lists(segments)
)
near = st.builds(
    lambda text, place, extra: text[: place % (len(text) + 1)] + extra + text[place % (len(text) + 1) :],
    spelled,
    st.integers(0, 3000),
    st.text(max_size=3),
)


@given(spelled)
def test_an_id_is_read_and_written_the_same(text: str) -> None:
    assert str(SpiffeID.parse(text)) == text
    assert SpiffeID.parse(text) == SpiffeID.normalized(text.replace("spiffe", "SPIFFE", 1))


@given(near | st.text() | st.binary().map(lambda junk: junk.decode("latin-1")))
def test_the_grammar_of_the_standard_is_the_grammar_here(text: str) -> None:
    legal = GRAMMAR.match(text) is not None and len(text) <= 2048
    try:
        assert str(SpiffeID.parse(text)) == text
    except InvalidSpiffeID:
        assert not legal
    else:
        assert legal
