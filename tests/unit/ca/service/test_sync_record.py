"""The file of the agents' last words: written when one of them changed, and read by another process."""

from __future__ import annotations

from pathlib import Path

import pytest

from ca.service import sync_record
from ca.service.sync_book import Acknowledgement, SyncBook
from ca.service.sync_record import SyncRecord, read_record
from istio_auth.strict_json import JSON
from tests.fakes.clock import FakeClock


def test_what_was_heard_is_read_again_and_nothing_is_made_while_nothing_is_heard(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, document = 0, sync_record.acknowledgement_document

    def counted(word: Acknowledgement) -> dict[str, JSON]:
        nonlocal made
        made += 1
        return document(word)

    monkeypatch.setattr(sync_record, "acknowledgement_document", counted)
    book = SyncBook()
    record = SyncRecord(tmp_path, book.entries)
    record.write()
    assert read_record(tmp_path) == {}
    book.opened("node-1", clock.now())
    book.heard("node-1", Acknowledgement(clock.now(), 3, 2, 1, ("web",), "1.0"))
    for _ in range(3):
        record.write()
    assert read_record(tmp_path) == {"node-1": Acknowledgement(clock.now(), 3, 2, 1, ("web",), "1.0", 1)}
    assert made == 1
    book.forget("node-1")
    record.write()
    assert read_record(tmp_path) == {}
