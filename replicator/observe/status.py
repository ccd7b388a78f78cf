"""The answer to `status`, for people."""

from __future__ import annotations

from typing import Any

from replicator.attribution.label import ROOT, UNKNOWN, label

WRITERS = 5
"""Writers of the backlog that are shown."""


def render(answer: dict[str, Any]) -> str:
    """Lines of "name: value"; `answer` as the control socket gave it."""
    if answer["role"] == "receiver":
        peer = answer["sender"] or "nobody"
        return "\n".join(
            [
                f"replica:  {answer['replica']}",
                f"sender:   {peer}",
                f"state:    {answer['state']}",
                f"durable:  epoch {answer['durable_epoch']}",
                *([f"trouble:  {answer['trouble']}"] if answer["trouble"] else []),
            ]
        )
    lag = answer["lag_applied_ms"]
    durable = answer["lag_durable_ms"]
    lines = [
        f"source:    {answer['source']} ({answer['filesystem']}, {answer['sensor']} sensor)",
        f"receiver:  {answer['receiver']}, {'connected' if answer['connected'] else 'not connected'}",
        f"state:     {answer['phase']}, {answer['files']} files",
        f"owed:      {answer['dirty_files']} files, {answer['dirty_bytes']} bytes,"
        f" the oldest for {answer['oldest_unreplicated_seconds']:.3f} s",
        *_writers(answer["writers"], estimated=answer["writers_estimated"]),
        f"lag:       applied p50 {lag['p50']:.2f} ms, p99 {lag['p99']:.2f} ms;"
        f" durable p50 {durable['p50']:.2f} ms, p99 {durable['p99']:.2f} ms",
        f"wire:      {answer['wire_bytes']['sent']} bytes sent, {answer['wire_bytes']['received']} received",
    ]
    if answer["scrub"] is not None:
        lines.append(f"scrub:     {_scrub(answer['scrub'])}")
    if answer["doubted_files"]:
        lines.append(f"doubted:   {answer['doubted_files']} files are compared block by block")
    lines += [f"excluded:  {path}, where rsyncfs keeps its state" for path in answer["excluded"]]
    if answer["state_trouble"]:
        lines.append(
            f"trouble:   the state directory cannot be written ({answer['state_trouble']}); a restart now would look"
            " through all inodes; free space there"
        )
    if answer["waiting_for"]:
        lines.append(f"waiting:   {answer['waiting_for']}")
    if answer["refused_files"]:
        lines.append(f"refused:   {answer['refused_files']} files, among them {', '.join(answer['refused'][:5])}")
    if answer["held_deletions"]:
        lines.append(
            f"holding:   {answer['held_deletions']} deletions, more than --max-delete {answer['max_delete']} within a"
            " minute; bring the names back, or start the sender with a higher limit"
        )
    lost = {cause: total for cause, total in answer["losses"].items() if total}
    if lost:
        lines.append("dropped:   " + ", ".join(f"{cause} {total}" for cause, total in lost.items()))
    return "\n".join(lines)


def _scrub(scrub: dict[str, Any]) -> str:
    running, last = scrub["running"], scrub["last"]
    if running is not None:
        now = f"{running['files']} of {running['of']} files, {running['bytes']} bytes compared"
    else:
        now = f"the next in {scrub['next_in']:.0f} s"
    if "files" not in last:
        return now
    unsettled = f", {last['unsettled']} files could not be judged" if last["unsettled"] else ""
    left = f", {last['left']} of them left" if last["left"] else ""
    return f"{now}; the last took {last['seconds']:.0f} s, found {last['found']} differences{left}{unsettled}"


def _writers(rows: list[dict[str, Any]], *, estimated: bool) -> list[str]:
    """Who wrote what is owed, the largest first."""
    lines: list[str] = []
    for row in rows[:WRITERS]:
        who = row["process"] or UNKNOWN
        if row["processes"] > 1:
            who += f" ({row['processes']} processes)"
        elif row["pid"] is not None:
            who += f" ({row['pid']})"
        group = label(row["container"])
        if group not in (ROOT, UNKNOWN):
            who += f" in {group}"
        about = "about " if estimated else ""
        lines.append(f"{'' if lines else 'writers:':11}{who}: {about}{row['files']} files, {row['bytes']} bytes")
    return lines
