"""Whatever happens to a source, and when: it serves what is good, says once what is not, and closing is for good."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from istio_auth.bundle import BundleSet
from istio_auth.errors import IstioAuthError, NotAuthorized
from istio_auth.sources.source import Source
from istio_auth.x509_source import X509Context
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.clock import FakeClock

AUTHORITY = FakeAuthority()
REFUSED = NotAuthorized("no identity here")
SVIDS = [
    AUTHORITY.svid(f"/{hours}", not_before=AUTHORITY.now, not_after=AUTHORITY.now + hours * HOUR)
    for hours in (1, 5, 20, 60)
]
CONTEXTS = [
    X509Context(svids, BundleSet(bundles))
    for svids in ((SVIDS[0],), (SVIDS[1],), (SVIDS[2], SVIDS[0]), (SVIDS[3], SVIDS[1]))
    for bundles in ((), (AUTHORITY.bundle(),))
]


class OpenSource(Source):
    """A source whose inside a test reaches."""

    hold, offer, lose, trouble = Source._hold, Source._offer, Source._lose, Source._trouble


Event = Callable[[OpenSource, FakeClock], object]

events = st.one_of(
    st.sampled_from(CONTEXTS).map(lambda context: lambda source, _: source.hold(context)),
    st.sampled_from(CONTEXTS).map(lambda context: lambda source, _: source.offer(context)),
    st.integers(0, 2).map(lambda number: lambda source, _: source.trouble(OSError(f"trouble {number}"))),
    st.just(lambda source, _: source.lose(REFUSED)),
    st.integers(1, 30).map(lambda hours: lambda _, clock: clock.advance(hours * HOUR / 2)),
)


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def log() -> Iterator[list[logging.LogRecord]]:
    """What the sources log meanwhile."""
    handler = Records()
    logger = logging.getLogger("istio_auth.sources")
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)


def served(source: OpenSource) -> X509Context | None:
    try:
        return source.x509_context()
    except IstioAuthError:
        return None


@given(st.lists(events, max_size=30))
def test_what_is_served_is_what_came_last_until_it_ends_or_is_lost(happenings: list[Event]) -> None:
    clock = FakeClock(AUTHORITY.now)
    source = OpenSource("a test", "mend it", clock=clock)
    with log() as records:
        for happens in happenings:
            before = source.status()
            happens(source, clock)
            context, status = served(source), source.status()
            assert status.ready == (context is not None)
            assert status.updates >= before.updates
            if context is not None:
                assert context.svid.not_after > clock.now()
                assert status.spiffe_id == context.svid.id
                assert status.remaining == context.svid.not_after - clock.now()
            else:
                assert status.trouble
        ended = Counter(record.getMessage() for record in records if record.levelno == logging.ERROR)
    assert max(ended.values(), default=0) <= max(source.status().updates, 1)
    source.close()
    source.hold(CONTEXTS[-1])
    assert served(source) is None


@given(st.lists(st.integers(1, 40), max_size=20))
def test_the_end_of_an_svid_is_told_once_whenever_one_looks(strides: list[int]) -> None:
    clock = FakeClock(AUTHORITY.now)
    source = OpenSource("a test", "mend it", clock=clock)
    with log() as records:
        source.hold(CONTEXTS[4])  # one that ends after an hour, and the default after twenty
        for stride in strides:
            clock.advance(timedelta(minutes=15 * stride))
            served(source)
        passed = clock.now() - AUTHORITY.now
        told = Counter((record.levelno, "/1 " in record.getMessage()) for record in records)
    assert told[logging.ERROR, True] == (passed >= HOUR)
    assert told[logging.ERROR, False] == (passed >= 20 * HOUR)
    assert told[logging.WARNING, True] <= 1
    assert told[logging.WARNING, False] <= 1
    if 16 * HOUR <= passed < 20 * HOUR:
        assert told[logging.WARNING, False] == 1
