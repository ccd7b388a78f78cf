"""What the tests in a guest share: one `trace` for all that look at the same tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Case
from tests.support.tracing import Trace


class Shown:
    """The `trace` of the running pair's tree, started when first asked for."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._trace: Trace | None = None
        self._source: Path | None = None

    def of(self, source: Path) -> Trace:
        """That of this tree."""
        if self._trace is None or self._source != source or not self._trace.process.running():
            self.close()
            self._trace, self._source = Trace(source, self._scratch).__enter__(), source
        return self._trace

    def close(self) -> None:
        """End it."""
        trace, self._trace = self._trace, None
        if trace is not None and trace.process.running():
            trace.stop()


@pytest.fixture(scope="session")
def _shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    made = Shown(tmp_path_factory.mktemp("shown"))
    yield made
    made.close()


@pytest.fixture
def trace(case: Case, _shown: Shown) -> Trace:
    """A `trace --json` of the tree of the case's pair; names of files begin with the case's."""
    return _shown.of(case.pair.source)
