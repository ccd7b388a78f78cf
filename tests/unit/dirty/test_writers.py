"""Writers are told apart by process and control group, and keep the name that they wrote under."""

from __future__ import annotations

from unittest import mock

from replicator.dirty import writers
from replicator.dirty.writers import FRESH, MOST, OTHERS, QUESTIONS, Share, Writer, Writers
from replicator.model import FileId


class Processes:
    """Answers with one name, and keeps who was asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[int] = []

    def __call__(self, pid: int) -> str:
        self.asked.append(pid)
        return self.name


def ids(number: int) -> FileId:
    return FileId(0, 0, number, 1)


def test_a_writer_is_asked_for_once_while_its_name_is_fresh() -> None:
    processes = Processes("dd")
    known = Writers(processes, lambda cgroup: f"/{cgroup}")
    known.begin(1)
    writer = known.of(7, 9)
    assert (writer.process, writer.container, known.of(7, 9) is writer) == ("dd", "/9", True)
    known.begin(FRESH)
    assert known.of(7, 9) is writer
    assert processes.asked == [7]
    known.begin(FRESH + 2)
    assert known.of(7, 9) is writer  # it has the same name still
    assert processes.asked == [7, 7]


def test_the_same_number_under_another_name_is_another_writer() -> None:
    names = {7: "sh"}
    known = Writers(names.get)
    known.begin(1)
    shell = known.of(7, 9)
    names[7] = "dd"
    known.begin(2 * FRESH)
    assert (known.of(7, 9).process, shell.process) == ("dd", "sh")
    del names[7]
    known.begin(4 * FRESH)
    assert known.of(7, 9).process == "dd"  # it has ended: its last records are its own


def test_a_process_that_ended_before_it_was_asked_for_has_no_name() -> None:
    known = Writers()
    known.begin(1)
    assert (known.of(7, 9).process, known.of(7, 9).pid) == (None, 7)


def test_no_batch_asks_for_more_than_it_may_and_the_next_goes_on() -> None:
    processes = Processes("cp")
    known = Writers(processes)
    known.begin(1)
    met = [known.of(pid, 1) for pid in range(QUESTIONS + 10)]
    assert len(processes.asked) == QUESTIONS
    known.begin(2)
    assert [known.of(pid, 1) for pid in range(QUESTIONS + 10)] == met
    assert len(processes.asked) == QUESTIONS + 10
    assert {writer.process for writer in met} == {"cp"}


def test_an_inode_tells_a_few_writers_apart_and_loses_no_byte() -> None:
    share = Share()
    for pid in range(1, 100):
        share.add(Writer(pid, 1), pid)
    told = dict(share)
    assert len(told) <= MOST + 1
    assert sum(told.values()) == sum(range(1, 100))
    assert told[OTHERS] == sum(range(MOST + 1, 100))


def test_shares_unite() -> None:
    one, other = Writer(1, 1), Writer(2, 1)
    first, second = Share(), Share()
    assert not first
    first.add(one, 10)
    second.add(other, 5)
    second.add(one, 1)
    first.update(second)
    assert dict(first) == {one: 11, other: 5}
    assert first


def test_who_wrote_before_a_file_had_its_name_is_known_when_it_gets_one() -> None:
    known = Writers()
    known.stranger(ids(1)).add(known.of(7, 9), 100)
    assert [written for _, written in known.welcome(ids(1))] == [100]
    assert not known.welcome(ids(1))


def test_memory_is_bounded() -> None:
    with mock.patch.object(writers, "STRANGERS", 10), mock.patch.object(writers, "KNOWN", 10):
        known = Writers()
        for number in range(100):
            known.stranger(ids(number)).add(known.of(number, 1), 1)
        assert [bool(known.welcome(ids(number))) for number in (0, 89, 90, 99)] == [False, False, True, True]
        assert len(known._known) <= 10
