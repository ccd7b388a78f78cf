"""Durations and sizes on the command line."""

from __future__ import annotations

import pytest

from replicator.errors import UsageError
from replicator.quantities import duration, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90), ("90s", 90), ("15min", 900), ("24h", 86_400), ("7d", 604_800), ("1w", 604_800)),
        *(("1h 30min", 5400), ("1h30min", 5400), (" 2 hours ", 7200), ("0.5s", 0.5), ("1 day 1 sec", 86_401)),
    ],
)
def test_a_duration(text: str, seconds: float) -> None:
    assert duration("--scrub", text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "0", "0s", "-1h", "h", "24x", "1h later", "1e3", "24H", "nan", "11 years", "9" * 400]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match=r"--scrub.*24h"):
        duration("--scrub", text)


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("1", 1), ("4096", 4096), ("20M", 20 << 20), ("20MiB", 20 << 20), ("1 G", 1 << 30), ("3KB", 3072)],
)
def test_a_size(text: str, bytes: int) -> None:
    assert size("--scrub-rate", text) == bytes


@pytest.mark.parametrize("text", ["", "0", "0M", "-1", "1.5M", "20m", "M", "1Q"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"--scrub-rate.*20M"):
        size("--scrub-rate", text)
