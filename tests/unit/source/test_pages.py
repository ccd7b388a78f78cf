"""Hashes of mapped pages."""

from __future__ import annotations

from replicator.model import FileId
from replicator.source.pages import PAGE, PageHashes

FILE = FileId(0, 0, 12, 1)
FOLIO = bytes(range(4)) * PAGE  # four pages


def test_the_first_store_ships_the_folio_and_a_later_one_its_page() -> None:
    pages = PageHashes()
    changed, hashes = pages.compare(FILE, 0, FOLIO)
    assert changed == [(0, len(FOLIO))]
    pages.remember(FILE, hashes)
    assert pages.compare(FILE, 0, FOLIO) == ([], {})
    stored = bytearray(FOLIO)
    stored[2 * PAGE + 7] ^= 1
    changed, _ = pages.compare(FILE, 0, bytes(stored))
    assert changed == [(2 * PAGE, 3 * PAGE)]


def test_a_page_sent_by_another_way_is_not_trusted() -> None:
    pages = PageHashes()
    pages.remember(FILE, pages.compare(FILE, 0, FOLIO)[1])
    pages.forget(FILE, [(PAGE + 1, PAGE + 2)])
    assert pages.compare(FILE, 0, FOLIO)[0] == [(PAGE, 2 * PAGE)]
    pages.forget(FILE, [(0, 1 << 62)])
    assert pages.compare(FILE, 0, FOLIO)[0] == [(0, len(FOLIO))]


def test_a_lost_epoch_forgets_all() -> None:
    pages = PageHashes()
    pages.remember(FILE, pages.compare(FILE, 0, FOLIO)[1])
    pages.clear()
    assert pages.compare(FILE, 0, FOLIO)[0] == [(0, len(FOLIO))]


def test_memory_is_bounded_and_what_is_forgotten_is_sent_again() -> None:
    pages = PageHashes(limit=4)
    other = FileId(0, 0, 13, 1)
    pages.remember(FILE, pages.compare(FILE, 0, FOLIO)[1])
    pages.remember(other, pages.compare(other, 0, FOLIO)[1])
    assert pages.compare(FILE, 0, FOLIO)[0] == [(0, len(FOLIO))]
    assert pages.compare(other, 0, FOLIO)[0] == []


def test_the_last_page_of_a_file_may_be_short() -> None:
    pages = PageHashes()
    changed, hashes = pages.compare(FILE, PAGE, b"x" * 100)
    assert changed == [(0, 100)]
    pages.remember(FILE, hashes)
    assert pages.compare(FILE, PAGE, b"x" * 101)[0] == [(0, 101)]
