"""The journal: what was said before the end is there after it, whatever the end was."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.capture.event import EVENT, Events
from replicator.capture.names import InodeLook, ListLook, MovedLook, Overflow, SlotLook
from replicator.dirty.generations import Generations
from replicator.journal.journal import Journal
from replicator.journal.marks import Doubt, Mark, Partial, Whole, decode, encode
from replicator.journal.segments import Damaged, Frame, Segments
from replicator.model import END_OF_FILE, FileId, Slot

SECOND = 1_000_000_000
ids = st.builds(FileId, st.just(0), *[st.integers(0, 2**64 - 1)] * 2, st.integers(0, 2**32 - 1))
names = st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name and b"\0" not in name)
spans = st.lists(
    st.tuples(st.integers(0, END_OF_FILE - 1), st.integers(1, END_OF_FILE)).filter(lambda span: span[0] < span[1]),
    max_size=3,
).map(tuple)
marks: st.SearchStrategy[Mark] = st.one_of(
    st.builds(SlotLook, st.builds(Slot, ids, names), st.none()),
    st.builds(InodeLook, ids),
    st.builds(MovedLook, ids),
    st.builds(ListLook, ids),
    st.just(Overflow()),
    st.builds(Whole, ids),
    st.builds(Doubt, ids),
    st.builds(Partial, ids, spans, spans, st.none() | st.integers(0, END_OF_FILE), *[st.booleans()] * 3),
)
frames = st.lists(st.builds(Frame, st.integers(0, 9), st.binary(max_size=40)), max_size=12)


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name, "journal")


@given(marks)
def test_a_mark_comes_back_as_it_was(mark: Mark) -> None:
    assert decode(encode(mark)) == mark


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda each: st.lists(each)))
def test_what_is_no_mark_is_refused(value: object) -> None:
    try:
        mark = decode(value)
    except ValueError:
        return
    assert decode(encode(mark)) == mark


@given(frames, st.data())
@settings(deadline=None)
def test_frames_from_before_the_cut_come_back_and_no_others(said: list[Frame], data: st.DataObject) -> None:
    with directory() as path:
        segments = Segments(path)
        segments.begin()
        ends = [0]
        for frame in said:
            segments.append(frame.kind, frame.payload)
            ends.append(segments.written)
        segments.close()
        file = path / "segment.1"
        whole = file.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        file.write_bytes(whole[:cut])
        left = Segments(path)
        kept = sum(end <= cut for end in ends) - 1
        assert list(left.read()) == said[:kept]
        left.begin()  # what follows is found behind it
        left.append(3, b"more")
        left.close()
        assert list(Segments(path).read()) == [*said[:kept], Frame(3, b"more")]


@given(frames.filter(bool), st.data())
@settings(deadline=None)
def test_a_changed_byte_is_never_taken_for_what_was_said(said: list[Frame], data: st.DataObject) -> None:
    with directory() as path:
        segments = Segments(path)
        segments.begin()
        for frame in said:
            segments.append(frame.kind, frame.payload)
        segments.close()
        file = path / "segment.1"
        raw = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        file.write_bytes(raw)
        found = list(Segments(path).read())
        assert found == said[: len(found)]
        assert len(found) < len(said)


def test_damage_before_the_newest_segment_is_told(scratch: Path) -> None:
    segments = Segments(scratch / "journal")
    for _ in range(2):
        segments.begin()
        segments.append(1, b"something")
    segments.close()
    with (scratch / "journal" / "segment.1").open("r+b") as file:
        file.truncate(15)
    with pytest.raises(Damaged):
        list(Segments(scratch / "journal").read())


def events(count: int, ino: int) -> Events:
    made = np.zeros(count, EVENT)
    made["ino"] = ino
    return made


steps = st.lists(
    st.tuples(st.sampled_from(["owe", "owe", "pay", "tick", "write", "die", "full"]), st.integers(0, 5)), max_size=40
)


@given(steps)
@settings(deadline=None)
def test_what_is_owed_is_in_the_journal_of_whoever_dies_or_the_gap_is_known(steps: list[tuple[str, int]]) -> None:
    """Owed: said, and its token not given back; or given back and not in the index yet."""
    with directory() as path:
        now = SECOND
        state = _Sender(path)
        state.journal.begin(now, anew=True)
        for action, number in steps:
            now += SECOND
            if action == "owe":
                state.owe(number, now)
            elif action == "pay":
                state.pay(number)
            elif action == "tick":
                state.journal.tick(now)
            elif action == "write":
                number = state.journal.settled()
                state.unwritten.clear()
                state.journal.remove(number)
            elif action == "full":
                state.fail(now)
                state.journal.tick(now + 1)
            else:
                owed = {id for id, _ in state.owed} | state.unwritten
                gap = not state.journal.keeping
                state = _Sender(path)
                items = state.journal.restored()
                assert (items is None) == gap
                said = [mark for item in items or () if isinstance(item, list) for mark in item]
                found = {mark.id for mark in said if isinstance(mark, Whole)}
                assert gap or owed <= found
                for id in sorted(found | owed):
                    state.owed.append((id, state.generations.hold()))
                if gap:
                    state.journal.forget()
                else:
                    state.journal.restored_all()
                state.journal.begin(now, anew=gap)
        assert state.journal.size < 100_000


class _Sender:
    def __init__(self, path: Path) -> None:
        self.generations = Generations()
        self.owed: list[tuple[FileId, int]] = []
        self.unwritten: set[FileId] = set()
        self.journal = Journal(path, 7, self.generations, self.marks, lambda: None)

    def marks(self) -> list[Mark]:
        """For a snapshot: what is in the index already may be forgotten, and nothing else."""
        return [Whole(id) for id in (*(id for id, _ in self.owed), *self.unwritten)]

    def owe(self, number: int, now: int) -> None:
        id = FileId(0, 0, number, 0)
        self.journal.marks([Whole(id)], now)
        self.owed.append((id, self.generations.hold()))

    def pay(self, number: int) -> None:
        if self.owed:
            id, token = self.owed.pop(number % len(self.owed))
            self.generations.release(token)
            self.unwritten.add(id)

    def fail(self, now: int) -> None:
        self.journal._fail(OSError(28, "No space left on device"), now)


def test_records_of_the_kernel_come_back_in_order(scratch: Path) -> None:
    generations = Generations()
    journal = Journal(scratch / "journal", 7, generations, lambda: (), lambda: None)
    journal.begin(1, anew=True)
    for number in range(5):
        journal.events(events(3, number).tobytes(), 1)
    journal.close()
    items = Journal(scratch / "journal", 7, Generations(), lambda: (), lambda: None).restored()
    assert items is not None
    assert [item["ino"].tolist() for item in items if not isinstance(item, list)] == [[n] * 3 for n in range(5)]


def test_the_journal_of_another_instance_is_a_gap(scratch: Path) -> None:
    journal = Journal(scratch / "journal", 7, Generations(), lambda: (), lambda: None)
    journal.begin(1, anew=True)
    journal.close()
    assert Journal(scratch / "journal", 8, Generations(), lambda: (), lambda: None).restored() is None


def test_it_stays_bounded_while_something_is_owed_for_ever(scratch: Path) -> None:
    generations = Generations()
    stuck = FileId(0, 0, 1, 1)
    journal = Journal(scratch / "journal", 7, generations, lambda: [Whole(stuck)], lambda: None)
    journal.begin(1, anew=True)
    generations.hold()
    for turn in range(1, 41):
        journal.events(events(65_536, 5).tobytes(), turn * SECOND)
        journal.tick(turn * SECOND)
        assert journal.size < 80 << 20
    items = Journal(scratch / "journal", 7, Generations(), lambda: (), lambda: None).restored()
    assert items is not None
    assert any(isinstance(item, list) and Whole(stuck) in item for item in items)


def test_a_journal_that_cannot_even_be_removed_is_not_left_for_the_truth(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forsaken: list[bool] = []
    journal = Journal(scratch / "journal", 7, Generations(), lambda: (), lambda: forsaken.append(True))
    journal.begin(1, anew=True)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Segments, "append", refuse)
    monkeypatch.setattr(Segments, "remove_all", refuse)
    journal.marks([Overflow()], 2)
    assert forsaken == [True]
    assert journal.trouble == "Read-only file system"
