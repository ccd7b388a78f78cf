"""The command line: parses, sets up logging and signals, runs, and turns errors into exit codes.

0 done, 1 the answer is no, 2 usage, 3 environment. An error is one line on stderr, never a traceback.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

import click
import orjson

from replicator import __version__
from replicator.config import STATE, ReceiveOptions, SendOptions
from replicator.errors import EnvironmentFault, RsyncfsError, UsageError
from replicator.observe.log import configure, printable

_DIRECTORY = click.Path(path_type=Path)
_SEND_STATE = STATE / "send"


@click.group(context_settings={"show_default": True, "max_content_width": 100})
@click.version_option(__version__, prog_name="rsyncfs", message="%(prog)s %(version)s", help="Print the version.")
def app() -> None:
    """Keep a live copy of a directory tree on another host by shipping only the bytes that changed."""


_state = click.option(
    "--state", metavar="DIR", type=_DIRECTORY, default=_SEND_STATE, help="The sender's state directory."
)
_json = click.option("--json", "as_json", is_flag=True, show_default=False, help="Print one JSON object.")
_metrics = click.option("--metrics", metavar="HOST:PORT", help="Serve /metrics there.")


def _tls(command: Callable[..., None]) -> Callable[..., None]:
    for name, text in (
        ("--tls-ca", "Who signs the other side's."),
        ("--tls-key", "Its private key."),
        ("--tls-cert", "This side's certificate."),
    ):
        command = click.option(name, metavar="FILE", help=text)(command)
    return command


class _Daemon(Protocol):
    def run(self) -> None:
        """Until stopped."""

    def stop(self) -> None:
        """End `run`; called by a signal handler."""

    def close(self) -> None:
        """Give everything back."""


@app.command()
@click.option("--root", metavar="DIR", type=_DIRECTORY, required=True, help="The replica's directory.")
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:7410")
@click.option("--state", metavar="DIR", type=_DIRECTORY, default=STATE / "receive")
@_metrics
@click.option("--adopt", is_flag=True, show_default=False, help="Take a directory that already has files in it.")
@_tls
def receive(
    root: Path,
    listen: str,
    state: Path,
    metrics: str | None,
    adopt: bool,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
) -> None:
    """Receive a replica into a directory."""
    with _uncollected():
        from replicator.link.address import parse_address
        from replicator.link.tls import tls_files
        from replicator.receiver import Receiver

    _as_root()
    options = ReceiveOptions(
        root.absolute(), parse_address(listen), state.absolute(), metrics, adopt, tls_files(tls_cert, tls_key, tls_ca)
    )
    receiver = Receiver(options)
    _serve(receiver, metrics, receiver.metrics.registry, _say_ready)


@app.command()
@click.argument("source", metavar="SRC", type=_DIRECTORY)
@click.argument("address", metavar="HOST:PORT")
@click.option("--state", metavar="DIR", type=_DIRECTORY, default=_SEND_STATE)
@_metrics
@click.option("--sensor", metavar="auto|vfs|tracepoint", default="auto")
@click.option("--scan", metavar="auto|walk", default="auto", help="How to find what changed while nothing watched.")
@click.option("--exclude", metavar="PATTERN", multiple=True, help="In gitignore syntax; may be repeated.")
@click.option("--max-delete", metavar="N", type=click.IntRange(min=0), help="Hold deletions of more names in a minute.")
@click.option("--scrub", metavar="DURATION", help="Compare both sides every so often, and mend: 24h, 7d, ...")
@click.option("--scrub-rate", metavar="BYTES", default="20M", help="What a scrub reads each second: 20M, 1G, ...")
@_tls
@click.option(
    "--detach-hooks",
    is_flag=True,
    show_default=False,
    help="Leave nothing in the kernel when stopped: the next start compares.",
)
@click.option("--ring-bytes", type=int, hidden=True)
@click.option("--lost-inodes", type=int, hidden=True)
def send(
    source: Path,
    address: str,
    state: Path,
    metrics: str | None,
    sensor: str,
    scan: str,
    exclude: tuple[str, ...],
    max_delete: int | None,
    scrub: str | None,
    scrub_rate: str,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    detach_hooks: bool,
    ring_bytes: int | None,
    lost_inodes: int | None,
) -> None:
    """Replicate a directory to a receiver, live. When it stops, its hooks stay for the next start; see unhook."""
    with _uncollected():
        from replicator.link.address import parse_address, resolve
        from replicator.link.tls import require_tls, tls_files
        from replicator.quantities import duration, size
        from replicator.scan.select import check_way
        from replicator.sender import Sender

    _as_root()
    check_way(scan)
    files = tls_files(tls_cert, tls_key, tls_ca)
    target = parse_address(address)
    if files is None:
        require_tls(target, resolve(target), None)
    options = SendOptions(
        source.absolute(),
        target,
        state.absolute(),
        metrics,
        sensor,
        scan,
        exclude,
        max_delete,
        files,
        detach_hooks,
        ring_bytes,
        lost_inodes,
        None if scrub is None else duration("--scrub", scrub),
        size("--scrub-rate", scrub_rate),
    )
    sender = Sender(options, _say_ready)
    _serve(sender, metrics, sender.metrics.registry, lambda: None)


@app.command()
@_state
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0))
def wait(state: Path, timeout: float | None) -> None:
    """Wait until every change made before now is durable on the replica; 1 when the time is up."""
    from replicator.observe.control import ask

    try:
        for answer in ask(state, {"op": "wait"}, timeout):
            _raise_error(answer)
    except TimeoutError:
        click.echo(
            f"not everything was durable on the replica within {timeout:g} seconds; see rsyncfs status", err=True
        )
        sys.exit(1)


@app.command()
@_state
@_json
def status(state: Path, as_json: bool) -> None:
    """Show what the running sender (or, with its state directory, receiver) is doing."""
    from replicator.observe.control import ask
    from replicator.observe.status import render

    for answer in ask(state, {"op": "status"}, 10):
        _raise_error(answer)
        answer.pop("done", None)
        click.echo(orjson.dumps(answer).decode() if as_json else render(answer))


@app.command()
@_state
@_json
@click.option("--repair", is_flag=True, show_default=False, help="Mend what is different, and compare that again.")
def verify(state: Path, as_json: bool, repair: bool) -> None:
    """Compare both sides; 0 if they are identical (with --repair: now), 1 if not, with each difference listed."""
    from replicator.observe.control import ask
    from replicator.verify.report import Report

    report = Report(json=as_json, repair=repair)
    for answer in ask(state, {"op": "verify", "repair": repair}):
        _raise_error(answer)
        report.take(answer)
    sys.exit(0 if report.good else 1)


@app.command()
@_json
def doctor(as_json: bool) -> None:
    """Show what this kernel offers, which sensor would be used, and what is missing."""
    from replicator.doctor import examine, render

    report = examine()
    click.echo(orjson.dumps(report).decode() if as_json else render(report))
    sys.exit(0 if report["usable"] else 3)


@app.command()
@click.argument("path", metavar="PATH", type=_DIRECTORY)
@_json
def trace(path: Path, as_json: bool) -> None:
    """Show the live write ranges under a directory: file, offset, length, process."""
    from replicator.trace.tracer import Tracer

    _as_root()
    _serve(Tracer(path.absolute(), as_json=as_json), None, None, lambda: None)


@app.command()
@_state
def unhook(state: Path) -> None:
    """Remove the hooks that a stopped sender left in the kernel."""
    from replicator.keeper.hooks import unhook as remove

    _as_root()
    remove(state.absolute())


@app.command()
@click.option("--seconds", metavar="N", type=click.IntRange(1, 3600), default=10)
@_json
def demo(seconds: int, as_json: bool) -> None:
    """Run both ends on loopback with a mixed workload, show live lag, and verify the result."""
    from replicator.demo import Demo

    _as_root()
    sys.exit(Demo(seconds, as_json=as_json).run())


COLLECTIONS = 20_000, 20, 20
"""Objects that come into being between two searches for garbage that refers to itself, of which there is hardly any:
with Python's 700 a first sync takes 7 % more of a processor."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """While many modules are imported nothing is garbage: looking for it costs a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _as_root() -> None:
    if os.geteuid() != 0:
        raise EnvironmentFault("this command needs root (BPF, fanotify, file handles, owners): run it with sudo")


def _say_ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _raise_error(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise RsyncfsError(answer["error"])


def _serve(daemon: _Daemon, metrics: str | None, registry: Any, started: Callable[[], None]) -> None:
    """Run in the foreground until SIGTERM or SIGINT."""
    from replicator.observe.http import MetricsServer, metrics_address

    server = None
    try:
        if metrics is not None:
            server = MetricsServer(metrics_address(metrics), registry)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: daemon.stop())
        started()
        gc.freeze()  # modules and what they hold are there for good: no collection need go through them
        gc.set_threshold(*COLLECTIONS)
        daemon.run()
    finally:
        daemon.close()
        if server is not None:
            server.close()


def _fail(error: BaseException, code: int) -> NoReturn:
    sys.stderr.write(f"rsyncfs: {printable(str(error))}\n")
    sys.stderr.flush()
    # Worker threads may hang in the kernel on a sick disk; nothing is left to be done for them.
    os._exit(code)


def main() -> None:
    """The console script."""
    sys.setswitchinterval(0.0005)  # a thread that waits for the interpreter waits for half a millisecond at most
    try:
        configure()
        app(prog_name="rsyncfs")
    except UsageError as error:
        _fail(error, UsageError.exit_code)
    except RsyncfsError as error:
        _fail(error, error.exit_code)
    except KeyboardInterrupt:
        _fail(RsyncfsError("interrupted"), 1)
