"""What `verify` prints of the answers that it gets: differences as they come, how far it is, and the verdict."""

from __future__ import annotations

import sys
from typing import Any

import orjson

from replicator.verify.found import text


class Report:
    """One run. Lines on stdout; on a terminal, how far it is on stderr."""

    def __init__(self, *, json: bool, repair: bool) -> None:
        self._json = json
        self._repair = repair
        self._live = sys.stderr.isatty() and not json
        self._differences: list[dict[str, Any]] = []
        self._mended: list[dict[str, Any]] = []
        self.good = False
        """Both sides are the same, now."""

    def take(self, answer: dict[str, Any]) -> None:
        """One line of the control socket."""
        if answer.pop("done", False):
            self._conclude(answer)
        elif "progress" in answer:
            self._progress(answer["progress"])
        elif "mended" in answer:
            self._mended.append(answer)
            self._say(f"{'mended' if answer['mended'] else 'not mended'}: {text(answer)}")
        else:
            self._differences.append(answer)
            self._say(text(answer))

    def _conclude(self, summary: dict[str, Any]) -> None:
        identical = bool(summary["identical"])
        self.good = identical or (self._repair and not summary["left"] and not summary["unsure"])
        if self._json:
            repaired = {"repaired": self._mended} if self._repair else {}
            self._write(orjson.dumps({**summary, "differences": self._differences, **repaired}).decode())
            return
        verdict = "identical" if identical else f"different: {summary['different']} differences"
        if "mended" in summary:
            verdict += f", {summary['mended']} mended, {summary['left']} left"
            if summary["unsure"]:
                verdict += f", {summary['unsure']} files written again before they could be compared"
        unsettled = summary["unsettled"]
        more = f"; {unsettled} were being written all the time and could not be judged" if unsettled else ""
        self._say(f"{verdict} ({summary['files']} files, {summary['bytes']} bytes compared){more}")

    def _progress(self, so_far: dict[str, Any]) -> None:
        if self._live:
            sys.stderr.write(f"\r{so_far['files']} of {so_far['of']} files, {so_far['bytes'] / 1e9:.1f} GB\x1b[K")
            sys.stderr.flush()

    def _say(self, line: str) -> None:
        if not self._json:
            self._write(line)

    def _write(self, line: str) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
