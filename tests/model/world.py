"""The source's users: somebody does something, anywhere in the filesystem, at random.

Takes a random generator, by which alone all is decided; gives one possible operation after the other.
"""

from __future__ import annotations

import random

from replicator.model import Kind
from replicator.tree.exclude import Exclude
from tests.model.filesystem import BIGGEST, Filesystem, Node

NAMES = (b"a", b"b", b"c")


class World(Filesystem):
    """A filesystem that is used."""

    def __init__(self, rng: random.Random, exclude: Exclude) -> None:
        super().__init__(rng, exclude)
        self.leaving = 0.0
        """How probable it is that an operation moves something out of the tree, or back to where it was."""
        self._away: list[tuple[bytes, Node, bytes]] = []
        """What was moved out: its name there, and the place that it had."""

    def directories(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.kind is Kind.DIRECTORY and node is not self.top]

    def files(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.kind is Kind.FILE]

    def act(self) -> None:
        """Some operation that is possible here (or, after a few tries, none)."""
        for _ in range(6):
            self.clock += 10
            if self._try():
                return

    def _try(self) -> bool:
        rng = self.rng
        if self.leaving and rng.random() < self.leaving:
            return self._leave_or_return()
        what = rng.choices(_OPERATIONS, cum_weights=_WEIGHTS)[0]
        done, args = False, ""
        if what in ("create", "mkdir", "symlink", "tmpfile"):
            parent, name = self._place()
            kind = {"mkdir": Kind.DIRECTORY, "symlink": Kind.SYMLINK}.get(what, Kind.FILE)
            done = self.tmpfile() if what == "tmpfile" else self.create(parent, name, kind)
            args = self._say_place(parent, name)
        elif what in ("rename", "exchange", "link", "unlink"):
            old, old_name = self._occupied()
            new, new_name = self._place()
            args = f"{self._say_place(old, old_name)} {self._say_place(new, new_name)}"
            if old_name == b"":
                return False
            if what == "rename":
                done = self.rename(old, old_name, new, new_name)
            elif what == "exchange":
                new, new_name = self._occupied()
                args = f"{self._say_place(old, old_name)} {self._say_place(new, new_name)}"
                done = self.exchange(old, old_name, new, new_name)
            elif what == "unlink":
                done = self.unlink(old, old_name)
            else:
                node = old.names[old_name] if rng.random() < 0.7 else rng.choice(self.files() or [old])
                args = f"{node.id.ino}.{node.id.gen} {self._say_place(new, new_name)}"
                done = self.link(node, new, new_name)
        elif what in ("attribute", "utimes"):
            node = rng.choice(list(self.nodes.values()))
            args = f"{node.id.ino}.{node.id.gen}"
            done = node is not self.top and (self.attribute(node) if what == "attribute" else self.utimes(node))
        else:
            files = self.files()
            if not files:
                return False
            node = rng.choice(files)
            offset, length = rng.randrange(BIGGEST), rng.randint(1, 4)
            args = f"{node.id.ino}.{node.id.gen} {offset}+{length}"
            if what == "truncate":
                done = self.truncate(node, offset)
            elif what == "store":
                done = self.store(node, offset)
            elif what == "append":
                done = self.begin_append(node, length)
            elif what == "append-end":
                done = self.finish_append(node)
            elif what in ("open", "close"):
                done = self.open(node) if what == "open" else self.close(node)
            else:
                done = {"write": self.write, "collapse": self.collapse, "insert": self.insert}[what](
                    node, offset, length
                )
        if done:
            self.note(f"source: {what} {args}")
        return done

    def _leave_or_return(self) -> bool:
        if self._away and self.rng.random() < 0.6:
            name, old, old_name = self._away.pop(self.rng.randrange(len(self._away)))
            self.note(f"source: return OUT/{name.decode()} {self._say_place(old, old_name)}")
            return self.rename(self.outside, name, old, old_name)
        old, old_name = self._occupied()
        if old_name == b"" or (old is not self.tree and not self.inside(old)):
            return False
        name = b"%d" % self.clock
        if not self.rename(old, old_name, self.outside, name):
            return False
        self.note(f"source: leave {self._say_place(old, old_name)} OUT/{name.decode()}")
        self._away.append((name, old, old_name))
        return True

    def _place(self) -> tuple[Node, bytes]:
        return self.rng.choice(self.directories()), self.rng.choice(NAMES)

    def _occupied(self) -> tuple[Node, bytes]:
        parents = [node for node in self.directories() if node.names]
        if not parents:
            return self.tree, b""
        parent = self.rng.choice(parents)
        return parent, self.rng.choice(list(parent.names))

    def _say_place(self, parent: Node, name: bytes) -> str:
        where = {self.tree: "TREE", self.outside: "OUT"}.get(parent, f"{parent.id.ino}.{parent.id.gen}")
        return f"{where}/{name.decode()}"


_MIX = {
    "rename": 24,
    "write": 20,
    "store": 8,
    "append": 3,
    "append-end": 6,
    "unlink": 10,
    "create": 9,
    "exchange": 7,
    "truncate": 8,
    "link": 7,
    "mkdir": 6,
    "collapse": 3,
    "insert": 3,
    "attribute": 3,
    "utimes": 2,
    "open": 3,
    "close": 3,
    "tmpfile": 2,
    "symlink": 2,
}
_OPERATIONS = list(_MIX)
_WEIGHTS = [sum(list(_MIX.values())[: count + 1]) for count in range(len(_MIX))]
