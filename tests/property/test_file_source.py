"""In whatever order files are written and looked at: what does not belong together is never taken together.

A look may come between any two steps of a writer, and steps of a writer between any two reads of one look.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from istio_auth.files import read_bounded
from istio_auth.keys import public_key_of, same_key
from istio_auth.sources import svid_files
from istio_auth.sources.files import FileSource
from istio_auth.sources.svid_files import SVIDLayout
from istio_auth.x509_source import X509Context
from tests.fakes.svid_folder import Step, SVIDFolder, generation

GENERATIONS = [generation(number) for number in range(4)]
TRUST_DOMAIN = GENERATIONS[0].svid.id.trust_domain
CHAINS = [context.svid.chain for context in GENERATIONS]
ROOTS = [context.bundle(TRUST_DOMAIN).x509_authorities for context in GENERATIONS]

orders = st.permutations(SVIDLayout.ISTIO.names)
cuts = st.lists(st.floats(0, 1), max_size=3)
looks = st.lists(st.booleans(), max_size=60)
meanwhile = st.lists(st.integers(0, 3), max_size=30)


class StillSource(FileSource):
    """One without a thread: the test says when it looks."""

    def _start(self, first: float) -> None:
        pass

    def look(self) -> float:
        return self._poll()


class Writer:
    """Does its steps one by one, whenever it is its turn."""

    def __init__(self, rotations: Sequence[Sequence[Step]]) -> None:
        self._steps = deque((step, last) for steps in rotations for step, last in _with_last(steps))
        self.resting = True

    def step(self) -> None:
        if self._steps:
            step, self.resting = self._steps.popleft()
            step()

    def finish(self) -> None:
        while self._steps:
            self.step()


def _with_last(steps: Sequence[Step]) -> list[tuple[Step, bool]]:
    return [(step, number == len(steps)) for number, step in enumerate(steps, 1)]


@contextmanager
def interrupted(writer: Writer, times: Sequence[int]) -> Generator[None]:
    """Let the writer make so many steps before each read."""
    turns = deque(times)

    def slow(path: Path, limit: int) -> bytes:
        for _ in range(turns.popleft() if turns else 0):
            writer.step()
        return read_bounded(path, limit)

    with mock.patch.object(svid_files, "read_bounded", slow):
        yield


@contextmanager
def folder_with(first: Callable[[SVIDFolder], list[Step]]) -> Generator[SVIDFolder]:
    with tempfile.TemporaryDirectory() as path:
        folder = SVIDFolder(Path(path))
        for step in first(folder):
            step()
        yield folder


def follow(folder: SVIDFolder, writer: Writer, turns: Sequence[bool], times: Sequence[int]) -> Generator[X509Context]:
    """What a source holds after each look; in the end it holds the last generation and has no trouble."""
    source = StillSource(folder.path)
    source.look()
    with interrupted(writer, times):
        for look in turns:
            if look:
                source.look()
                yield source.x509_context()
            else:
                writer.step()
    writer.finish()
    source.look()
    source.look()
    assert (source.svid(), source.status().trouble) == (GENERATIONS[-1].svid, None)
    yield source.x509_context()
    source.close()


def belongs_together(held: X509Context) -> bool:
    return same_key(public_key_of(held.svid.leaf), held.svid.private_key.public_key())


def roots_of(held: X509Context) -> tuple[object, ...]:
    return held.bundle(TRUST_DOMAIN).x509_authorities


@given(st.lists(st.tuples(orders, cuts), min_size=3, max_size=3), looks, meanwhile)
def test_files_written_in_place_never_give_a_key_and_a_certificate_of_two_svids(
    ways: list[tuple[list[str], list[float]]], turns: list[bool], times: list[int]
) -> None:
    with folder_with(lambda folder: folder.in_place(GENERATIONS[0])) as folder:
        rotations = zip(GENERATIONS[1:], ways, strict=True)
        writer = Writer([folder.in_place(it, names=order, cuts=cut) for it, (order, cut) in rotations])
        for held in follow(folder, writer, turns, times):
            assert belongs_together(held)
            assert any(chain[: len(held.svid.chain)] == held.svid.chain for chain in CHAINS)


@given(st.lists(st.tuples(orders, cuts), min_size=3, max_size=3), st.lists(st.integers(1, 8), max_size=40), meanwhile)
def test_files_written_in_place_are_taken_whole_if_the_writer_does_not_pause(
    ways: list[tuple[list[str], list[float]]], strides: list[int], times: list[int]
) -> None:
    with folder_with(lambda folder: folder.in_place(GENERATIONS[0])) as folder:
        rotations = zip(GENERATIONS[1:], ways, strict=True)
        writer = Writer([folder.in_place(it, names=order, cuts=cut) for it, (order, cut) in rotations])
        source = StillSource(folder.path)
        source.look()
        with interrupted(writer, times):
            for stride in strides:
                for _ in range(stride):
                    writer.step()
                source.look()
                if writer.resting:
                    source.look()
                held = source.x509_context()
                assert (held.svid.chain, roots_of(held)) in list(zip(CHAINS, ROOTS, strict=True))
                assert source.status().trouble is None


@given(st.lists(orders, min_size=3, max_size=3), looks, meanwhile)
def test_files_that_are_renamed_into_place_are_taken_whole(
    ways: list[list[str]], turns: list[bool], times: list[int]
) -> None:
    with folder_with(lambda folder: folder.in_place(GENERATIONS[0])) as folder:
        rotations = zip(GENERATIONS[1:], ways, strict=True)
        writer = Writer([folder.by_renaming(it, names=order) for it, order in rotations])
        for held in follow(folder, writer, turns, times):
            assert belongs_together(held)
            assert held.svid.chain in CHAINS
            assert roots_of(held) in ROOTS


spoilt = st.tuples(
    st.sampled_from(SVIDLayout.ISTIO.names), st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)))
)


@given(st.lists(spoilt, max_size=3), st.binary(max_size=40))
def test_bytes_that_were_changed_anywhere_harm_nobody(
    faults: list[tuple[str, list[tuple[float, int]]]], text: bytes
) -> None:
    """Inside of the certificates and the key as well: their base64 stays base64."""
    with folder_with(lambda folder: folder.in_place(GENERATIONS[0])) as folder:
        bundles = folder.path / "bundles.json"
        source = StillSource(folder.path, bundle_map=bundles)
        assert source.reload().ready
        bundles.write_bytes(text)
        for name, changes in faults:
            folder.put(name, changed(folder.contents(GENERATIONS[1])[name], changes))
            source.look()
            source.look()
            held = source.x509_context()
            assert belongs_together(held)
        source.close()


def changed(pem: bytes, changes: Sequence[tuple[float, int]]) -> bytes:
    blocks = []
    for block in re.findall(rb"-----BEGIN ([A-Z ]+)-----(.*?)-----END", pem, re.DOTALL):
        der = bytearray(base64.b64decode(block[1]))
        for place, change in changes:
            der[int(place * len(der))] ^= change
        blocks.append(b"-----BEGIN %b-----\n%b-----END %b-----\n" % (block[0], base64.encodebytes(der), block[0]))
    return b"".join(blocks)


@given(looks, meanwhile)
def test_files_of_a_volume_that_is_swapped_are_always_of_one_generation(turns: list[bool], times: list[int]) -> None:
    with folder_with(lambda folder: folder.by_swapping(GENERATIONS[0])) as folder:
        writer = Writer([folder.by_swapping(it) for it in GENERATIONS[1:]])
        for held in follow(folder, writer, turns, times):
            assert (held.svid.chain, roots_of(held)) in list(zip(CHAINS, ROOTS, strict=True))
