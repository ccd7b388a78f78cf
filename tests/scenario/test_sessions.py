"""Sessions as transcripts: the files in sessions/, whose README says how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.errors import RemoteError
from replicator.link import message as m
from replicator.link.session import TRANSITIONS, Party, ProtocolMisuse, Session, State
from replicator.model import Answer, Facts, FileId

FILES = sorted((Path(__file__).parent / "sessions").glob("*.txt"))
PARTIES = {"S": Party.SENDER, "R": Party.RECEIVER}


def options(words: list[str]) -> dict[str, int]:
    return {key: int(value) for key, _, value in (word.partition("=") for word in words if "=" in word)}


def number(words: list[str]) -> int:
    return int(words[1])


def hello(words: list[str]) -> m.Message:
    values = {"instance": 1} | options(words)
    return m.Hello("source", FileId(0, 0, 2, 0), **values)  # type: ignore[arg-type]


def reason(words: list[str]) -> str:
    return "-".join(words[1:]) or "bye"


SAY: dict[str, Callable[[list[str]], m.Message]] = {
    "hello": hello,
    "welcome": lambda words: m.Welcome("replica", False, **options(words)),  # type: ignore[arg-type]
    "refuse": lambda words: m.Refuse(words[1], "because", permanent=True),
    "facts": lambda words: m.FactsFrame(Facts(number(words))),
    "data": lambda words: m.Data(number(words), 0, 0, b"x"),
    "end": lambda words: m.End(number(words), 0, 0),
    "applied": lambda words: m.Applied(Answer(number(words))),
    "durable": lambda words: m.Durable(number(words)),
    "ping": lambda words: m.Ping(number(words)),
    "pong": lambda words: m.Pong(number(words)),
    "check": lambda words: m.Check(number(words)),
    "checked": lambda words: m.Checked(number(words)),
    "bye": lambda words: m.Bye(reason(words)),
}


class Stage:
    """Two machines and what is under way between them."""

    def __init__(self, last: int = 0) -> None:
        self.ends = {Party.SENDER: Session(Party.SENDER, last), Party.RECEIVER: Session(Party.RECEIVER)}
        self.under_way: dict[Party, list[tuple[m.Message, int]]] = {Party.SENDER: [], Party.RECEIVER: []}

    def say(self, party: Party, words: list[str], *, later: bool) -> None:
        message = SAY[words[0]](words)
        size = 1
        for word in words:
            if word.startswith("size="):
                size = int(word[5:])
        self.ends[party].sent(message, size)
        if later:
            self.under_way[party].append((message, size))
        else:
            self.ends[party.other].received(message, size)

    def must_not(self, party: Party, words: list[str], says: str, *, ends: str) -> None:
        message = SAY[words[0]]([word for word in words if not word.startswith("size=")])
        before = [self.look(PARTIES[end]) for end in "SR"]
        if party in (PARTIES[end] for end in ends):
            with pytest.raises(ProtocolMisuse) as bug:
                self.ends[party].sent(message, 1)
            assert says in str(bug.value)
        if party.other in (PARTIES[end] for end in ends):
            with pytest.raises(RemoteError) as lie:
                self.ends[party.other].received(message, 1)
            assert says in str(lie.value)
        assert [self.look(PARTIES[end]) for end in "SR"] == before

    def look(self, party: Party) -> dict[str, str]:
        session = self.ends[party]
        epochs, size = session.in_flight
        return {
            "state": session.states[party].name,
            "open": "yes" if session.open else "no",
            "closed": "yes" if session.closed else "no",
            "window": str(session.window_left()),
            "flight": f"{epochs}/{size}",
            "sent": str(session.sent_epoch),
            "applied": str(session.applied),
            "durable": str(session.durable),
            "reverted": "yes" if session.reverted else "no",
            "ahead": "yes" if session.ahead else "no",
            "refusal": session.refusal.code if session.refusal else "",
            "farewell": session.farewell.reason if session.farewell else "",
        }


def lines(file: Path) -> Iterator[tuple[int, str]]:
    for at, line in enumerate(file.read_text().splitlines(), 1):
        text = line.partition("#")[0].strip()
        if text:
            yield at, text


def play(stage: Stage, line: str) -> Stage:
    said, marker, says = line.partition(" !")
    words = said.split()
    match words[0]:
        case "begin":
            return Stage(**options(words))
        case "deliver":
            party = PARTIES[words[1]]
            for message, size in stage.under_way[party]:
                stage.ends[party.other].received(message, size)
            stage.under_way[party] = []
        case "expect":
            found = stage.look(PARTIES[words[1]])
            wanted = dict(word.split("=", 1) for word in words[2:])
            assert {key: found[key] for key in wanted} == wanted
        case who if marker:
            stage.must_not(PARTIES[who], words[1:], says[1:].strip(), ends="SR" if says[0] == "!" else says[0])
        case who:
            stage.say(PARTIES[who.rstrip("~")], words[1:], later=who.endswith("~"))
    return stage


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_transcript(file: Path) -> None:
    stage = Stage()
    for at, line in lines(file):
        try:
            stage = play(stage, line)
        except BaseException as error:
            raise AssertionError(f"{file.name}:{at}: {line}") from error


def test_there_are_transcripts() -> None:
    assert len(FILES) >= 6


def test_the_table_knows_each_party_in_each_of_its_states() -> None:
    assert {state for party, state in TRANSITIONS if party is Party.SENDER} == set(State)
    for (party, _), steps in TRANSITIONS.items():
        for after in steps.values():
            assert (party, after) in TRANSITIONS


def test_requests_without_end_are_refused() -> None:
    stage = Stage()
    stage.say(Party.SENDER, ["hello"], later=False)
    stage.say(Party.RECEIVER, ["welcome"], later=False)
    for request in range(1024):
        stage.say(Party.SENDER, ["check", str(request)], later=False)
    stage.must_not(Party.SENDER, ["check", "1024"], "too many requests", ends="SR")
