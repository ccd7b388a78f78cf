"""The fence: a new number in shared memory, then a barrier on every processor."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from replicator import syscalls
from replicator.capture import bpf, fence
from replicator.capture.epochs import LOW
from replicator.capture.fence import Fence, online


class Kernel:
    """Memory in a map's place, and what was done to the processors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.descriptor = os.memfd_create("epoch")
        os.ftruncate(self.descriptor, mmap.PAGESIZE)
        self.calls: list[tuple[str, int, int]] = []
        """(what, processor, the epoch that programs saw then)"""
        self.refusal = 0
        monkeypatch.setattr(bpf, "load_program", lambda *_: os.dup(self.descriptor))
        monkeypatch.setattr(bpf, "run_on", self._run_on)
        monkeypatch.setattr(syscalls, "membarrier", lambda: self.calls.append(("membarrier", -1, self.epoch)))

    @property
    def epoch(self) -> int:
        return int.from_bytes(os.pread(self.descriptor, 8, 0), "little")

    def _run_on(self, program: int, cpu: int) -> bool:
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.calls.append(("interrupt", cpu, self.epoch))
        return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel(monkeypatch)
    monkeypatch.setattr(fence, "online", lambda listed: [0, 2])
    yield made
    os.close(made.descriptor)


def test_every_write_is_told_until_the_first_fence(kernel: Kernel) -> None:
    made = Fence(kernel.descriptor)
    assert (made.epoch, kernel.epoch) == (0, 0)
    made.close()


def test_epochs_go_on_from_those_of_a_process_before(kernel: Kernel) -> None:
    first = Fence(kernel.descriptor)
    first.advance()
    first.advance()
    first.close()
    second = Fence(kernel.descriptor)
    assert second.epoch == 2
    assert second.advance() == kernel.epoch == 3
    second.close()


def test_the_number_is_there_before_the_first_processor_is_interrupted(kernel: Kernel) -> None:
    made = Fence(kernel.descriptor)
    assert [made.advance(), made.advance()] == [1, 2]
    assert kernel.calls == [("interrupt", 0, 1), ("interrupt", 2, 1), ("interrupt", 0, 2), ("interrupt", 2, 2)]
    made.close()


def test_no_number_has_a_low_half_of_zero(kernel: Kernel) -> None:
    made = Fence(kernel.descriptor)
    made.epoch = LOW - 1
    assert [made.advance(), made.advance()] == [LOW, LOW + 2]
    assert kernel.epoch == LOW + 2
    made.close()


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP, 524])
def test_a_kernel_that_cannot_run_a_program_at_a_processor_is_asked_for_a_barrier(kernel: Kernel, refusal: int) -> None:
    kernel.refusal = refusal
    made = Fence(kernel.descriptor)
    made.advance()
    assert kernel.calls == [("membarrier", -1, 1)]
    made.close()


def test_any_other_refusal_is_no_fence(kernel: Kernel) -> None:
    kernel.refusal = errno.EPERM
    made = Fence(kernel.descriptor)
    with pytest.raises(PermissionError):
        made.advance()
    made.close()


def test_closing_twice_is_closing_once(kernel: Kernel) -> None:
    made = Fence(kernel.descriptor)
    made.advance()
    made.close()
    made.close()


@pytest.mark.parametrize(("told", "processors"), [("0", [0]), ("0-3", [0, 1, 2, 3]), ("0-1,4,6-7", [0, 1, 4, 6, 7])])
def test_the_processors_are_those_that_the_kernel_lists(told: str, processors: list[int]) -> None:
    assert online(told.encode() + b"\n") == processors
