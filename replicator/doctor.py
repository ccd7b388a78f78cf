"""`doctor`: what capture/probe.py found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from replicator import __version__
from replicator.capture import probe


def examine() -> dict[str, Any]:
    """The report: {"version", "kernel", "usable", "sensor", "reason", "findings", "filesystems"}."""
    offer = probe.examine()
    return {
        "version": __version__,
        "kernel": offer.release,
        "usable": offer.sensor is not None,
        "sensor": offer.sensor,
        "reason": offer.reason,
        "findings": [asdict(finding) for finding in offer.findings],
        "filesystems": [{**asdict(support), "usable": support.usable} for support in offer.filesystems],
    }


def render(report: dict[str, Any]) -> str:
    """The report as lines."""
    lines = [f"rsyncfs {report['version']} on Linux {report['kernel']}", ""]
    for finding in report["findings"]:
        mark = "yes" if finding["available"] else "NO " if finding["required"] else "no "
        lines.append(f"  {mark} {finding['name']:12} {finding['detail']}")
    lines.append("")
    for filesystem in report["filesystems"]:
        missing = [item for item in filesystem["coverage"] if not item["covered"]]
        verdict = (
            "cannot be followed" if not filesystem["usable"] else "followed" if not missing else "followed in part"
        )
        lines.append(f"  {filesystem['fstype']:6} {verdict}")
        lines += [f"         without {item['mechanism']}: {item['reason']}" for item in missing]
        lines += [f"         {limit}" for limit in filesystem["limits"]]
    lines += ["", f"sensor: {report['sensor'] or 'none'} ({report['reason']})"]
    return "\n".join(lines)
