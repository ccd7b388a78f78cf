"""`doctor`: what capture/probe.py found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from replicator import __version__
from replicator.capture import probe
from replicator.capture.choice import MECHANISMS


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
        lines += _filesystem(filesystem)
    lines += ["", f"sensor: {report['sensor'] or 'none'} ({report['reason']})"]
    return "\n".join(lines)


def _filesystem(filesystem: dict[str, Any]) -> list[str]:
    missing = [item for item in filesystem["coverage"] if not item["covered"]]
    if not filesystem["usable"]:
        verdict = f"cannot be followed: {filesystem['reason']}"
    else:
        verdict = f"followed{' in part' if missing else ''} by the {filesystem['sensor']} sensor"
    lines = [f"  {filesystem['fstype']:6} {verdict}"]
    if filesystem["usable"]:
        lines.append(f"         {'':11}" + "".join(f"{name:12}" for name in MECHANISMS).rstrip())
        lines += [_family(choice) for choice in filesystem["families"]]
    lines += [f"         without {item['mechanism']}: {item['reason']}" for item in missing]
    lines += [f"         {limit}" for limit in filesystem["limits"]]
    return lines


def _family(choice: dict[str, Any]) -> str:
    cells = {option["mechanism"]: "yes" if option["available"] else "no" for option in choice["options"]}
    if choice["chosen"] is not None:
        cells[choice["chosen"]] = "chosen"
    return (f"         {choice['family']:11}" + "".join(f"{cells.get(name, '-'):12}" for name in MECHANISMS)).rstrip()
