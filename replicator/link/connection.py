"""A connection as the loops see it: say messages and epochs, hear messages and epochs.

Takes a Transport and puts codec, session and epoch assembly on top; answers pings, notices a peer that fell silent.
Everything that goes wrong comes as LinkLost (try again), RemoteError (the peer broke the rules: close, try again
later) or RefusedError (certificates). It decides nothing about replicas.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from collections.abc import Callable, Sequence

from replicator.errors import RemoteError, RsyncfsError
from replicator.link import message as m
from replicator.link.epoch import Epoch, EpochAssembler, Piece, covers, messages
from replicator.link.session import Party, ProtocolMisuse, Session
from replicator.link.transport import LinkLost, Transport
from replicator.model import Facts

PING_AFTER = 5.0
"""Seconds of silence after which the peer is asked whether it is there."""

SILENCE = 60.0
"""Seconds of silence, pings notwithstanding, after which the peer counts as lost."""

GREETING = 20.0
"""Seconds from the start to the end of the handshake."""

Heard = m.Hello | m.Welcome | m.Refuse | Epoch | m.Applied | m.Durable | m.Check | m.Checked | m.Bye


class Connection:
    """One end of one connection. `last_epoch` as in Session."""

    def __init__(
        self, transport: Transport, role: Party, last_epoch: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.transport = transport
        self.session = Session(role, last_epoch)
        self._assembler = EpochAssembler()
        self._clock = clock
        self._born = self._heard_at = clock()
        self._pinged_at = 0.0
        self._bytes_seen = 0
        self._tokens = 0
        self._failure: RsyncfsError | None = None

    def fileno(self) -> int:
        """For the selector."""
        return self.transport.fileno()

    def interest(self) -> int:
        """The selectors.EVENT_* mask to wait for; look again after each call of another method."""
        write = 0 if self._failure is None else selectors.EVENT_WRITE  # so that `flush()` raises it at once
        return self.transport.interest() | write

    def say(self, message: m.Message) -> int:
        """Queue a message and send what can be sent at once; its bytes on the wire. May be called before the
        connection is established. ProtocolMisuse if it must not be said now."""
        parts = m.encode(message)
        size = m.size(parts)
        self.session.sent(message, size)
        self.transport.send(parts)
        self.transport.flush()
        return size

    def say_epoch(self, facts: Facts, payload: Sequence[Piece]) -> int:
        """Queue a whole epoch and send what can be sent at once; its bytes on the wire.

        `payload` must cover the facts' `data` ranges exactly and in order (ProtocolMisuse if it does not, before
        anything is sent), and its buffers must not change afterwards. Ask `session.window_left()` first. ValueError
        if the encoded facts exceed frame.MAX_FACTS.
        """
        if not covers(facts, payload):
            raise ProtocolMisuse(f"the payload of epoch {facts.epoch} is not what its facts declare")
        total = 0
        for message in messages(facts, payload):
            parts = m.encode(message)
            size = m.size(parts)
            self.session.sent(message, size)
            self.transport.send(parts)
            total += size
        self.transport.flush()
        return total

    def flush(self) -> None:
        """Send what the kernel takes; to be called when the descriptor is writable. Raises what `hear()` owes."""
        if self._failure is not None:
            raise self._failure
        self.transport.flush()

    def hear(self, budget: int = 4 * 2**20) -> list[Heard]:
        """What has arrived, after reading about `budget` bytes at most; to be called when the descriptor is readable.

        What was said before an error is given first, the error is raised by the next call.
        """
        if self._failure is not None:
            raise self._failure
        heard: list[Heard] = []
        try:
            for received in self.transport.receive(budget):
                message = m.decode(received)
                was_closed = self.session.closed
                self.session.received(message, received.size)
                if not was_closed or isinstance(message, m.Bye):
                    self._take(message, heard)
        except RsyncfsError as error:
            self._failure = error
            if not heard:
                raise
        if self.transport.bytes_in != self._bytes_seen:
            self._bytes_seen = self.transport.bytes_in
            self._heard_at = self._clock()
        return heard

    def beat(self) -> float:
        """Ask a silent peer whether it is there; LinkLost if it has been silent for too long. To be called at least
        as often as the seconds that it returns. Also raises what `hear()` still owes."""
        if self._failure is not None:
            raise self._failure
        now = self._clock()
        late = self.transport.late()
        if late is not None and late <= 0:
            raise LinkLost(f"cannot connect to {self.transport.peer}: no answer; is it up, is a firewall between?")
        if not self.session.open:
            if now - self._born > GREETING:
                raise LinkLost(f"{self.transport.peer} did not complete the handshake in {GREETING:.0f} s")
            return 1.0
        silent = now - self._heard_at
        if silent >= SILENCE:
            raise LinkLost(f"{self.transport.peer} has been silent for {silent:.0f} s")
        if silent >= PING_AFTER and now - self._pinged_at >= PING_AFTER:
            self._pinged_at = now
            self._tokens += 1
            self.say(m.Ping(self._tokens))
        return max(0.1, PING_AFTER - silent) if silent < PING_AFTER else 1.0

    def stalled(self) -> bool:
        """Whether the kernel waits in vain for the peer to acknowledge something. It waits twice as long each time,
        so when a path has just come back, connecting anew is quicker than leaving it to that."""
        info = self.transport.tcp_info()
        return info is None or info.timeouts > 0

    def close(self, reason: str | None = None) -> None:
        """End it, with a Bye if there is a reason to tell and the peer can still be told. Never raises."""
        if reason is not None:
            # Whatever prevents the farewell: whoever closes the connection knows why.
            with contextlib.suppress(RsyncfsError, ProtocolMisuse):
                self.say(m.Bye(reason))
        self.transport.close()

    def _take(self, message: m.Message, heard: list[Heard]) -> None:
        match message:
            case m.FactsFrame() | m.Data() | m.End():
                epoch = self._assembler.add(message)
                if epoch is not None:
                    heard.append(epoch)
            case m.Ping(token):
                if not self.session.closed:
                    self.say(m.Pong(token))
            case m.Pong():
                return
            case _:
                heard.append(message)


__all__ = ["Connection", "Heard", "LinkLost", "Party", "ProtocolMisuse", "RemoteError"]
