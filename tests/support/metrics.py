"""Prometheus' text format, as far as the tests need it.

Takes the text or the address of an exporter; gives the samples. Knows no types and keeps no history.
"""

from __future__ import annotations

import http.client


class Samples(dict[str, float]):
    """Samples by their full name as printed, labels included: `rsyncfs_wire_bytes_total{direction="sent"}`."""

    def total(self, name: str) -> float:
        """The sum over all label sets of a metric; 0 if it has no sample."""
        return sum(value for key, value in self.items() if key == name or key.startswith(name + "{"))


def parse(text: str) -> Samples:
    """Read an exporter's answer."""
    samples = Samples()
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, value = line.rsplit(" ", 1)
            samples[key] = float(value)
    return samples


def scrape(address: str, timeout: float = 5.0) -> Samples:
    """Fetch `http://address/metrics`, where `address` is HOST:PORT. OSError if nobody answers."""
    # Not urllib: it would ask the environment for a proxy, and takes longer than the answer.
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", "/metrics")
        return parse(connection.getresponse().read().decode())
    finally:
        connection.close()
