"""The command line: parses, sets up logging and signals, runs, and turns errors into exit codes.

0 done, 1 the answer is no, 2 usage, 3 environment. An error is one line on stderr, never a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol

import orjson
import typer

from replicator import __version__
from replicator.config import STATE, ReceiveOptions, SendOptions
from replicator.errors import EnvironmentFault, RsyncfsError, UsageError
from replicator.observe.log import configure, printable

app = typer.Typer(
    name="rsyncfs",
    help="Keep a live copy of a directory tree on another host by shipping only the bytes that changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StateOption = Annotated[Path, typer.Option("--state", metavar="DIR", help="The sender's state directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MetricsOption = Annotated[str | None, typer.Option("--metrics", metavar="HOST:PORT", help="Serve /metrics there.")]
CertificateOption = Annotated[str | None, typer.Option("--tls-cert", metavar="FILE", help="This side's certificate.")]
KeyOption = Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="Its private key.")]
AuthorityOption = Annotated[str | None, typer.Option("--tls-ca", metavar="FILE", help="Who signs the other side's.")]
_SEND_STATE = STATE / "send"


class _Daemon(Protocol):
    def run(self) -> None:
        """Until stopped."""

    def stop(self) -> None:
        """End `run`; called by a signal handler."""

    def close(self) -> None:
        """Give everything back."""


@app.command()
def receive(
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="The replica's directory.")],
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT")] = "127.0.0.1:7410",
    state: Annotated[Path, typer.Option("--state", metavar="DIR")] = STATE / "receive",
    metrics: MetricsOption = None,
    adopt: Annotated[bool, typer.Option("--adopt", help="Take a directory that already has files in it.")] = False,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    tls_ca: AuthorityOption = None,
) -> None:
    """Receive a replica into a directory."""
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
def send(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The directory to replicate.")],
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the receiver listens.")],
    state: Annotated[Path, typer.Option("--state", metavar="DIR")] = _SEND_STATE,
    metrics: MetricsOption = None,
    sensor: Annotated[str, typer.Option("--sensor", metavar="auto|vfs|tracepoint")] = "auto",
    scan: Annotated[
        str, typer.Option("--scan", metavar="auto|walk", help="How to find what changed while nothing watched.")
    ] = "auto",
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="In gitignore syntax; may be repeated.")
    ] = None,
    max_delete: Annotated[
        int | None, typer.Option("--max-delete", metavar="N", min=0, help="Hold deletions of more names in a minute.")
    ] = None,
    scrub: Annotated[
        str | None,
        typer.Option("--scrub", metavar="DURATION", help="Compare both sides every so often, and mend: 24h, 7d, ..."),
    ] = None,
    scrub_rate: Annotated[
        str, typer.Option("--scrub-rate", metavar="BYTES", help="What a scrub reads each second: 20M, 1G, ...")
    ] = "20M",
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    tls_ca: AuthorityOption = None,
    detach_hooks: Annotated[
        bool, typer.Option("--detach-hooks", help="Leave nothing in the kernel when stopped: the next start compares.")
    ] = False,
    ring_bytes: Annotated[int | None, typer.Option("--ring-bytes", hidden=True)] = None,
    lost_inodes: Annotated[int | None, typer.Option("--lost-inodes", hidden=True)] = None,
) -> None:
    """Replicate a directory to a receiver, live. When it stops, its hooks stay for the next start; see unhook."""
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
        tuple(exclude or ()),
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
def wait(
    state: StateOption = _SEND_STATE,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=0)] = None,
) -> None:
    """Wait until every change made before now is durable on the replica; 1 when the time is up."""
    from replicator.observe.control import ask

    try:
        for answer in ask(state, {"op": "wait"}, timeout):
            _raise_error(answer)
    except TimeoutError:
        typer.echo(
            f"not everything was durable on the replica within {timeout:g} seconds; see rsyncfs status", err=True
        )
        raise typer.Exit(1) from None


@app.command()
def status(state: StateOption = _SEND_STATE, json: JsonOption = False) -> None:
    """Show what the running sender (or, with its state directory, receiver) is doing."""
    from replicator.observe.control import ask
    from replicator.observe.status import render

    for answer in ask(state, {"op": "status"}, 10):
        _raise_error(answer)
        answer.pop("done", None)
        typer.echo(orjson.dumps(answer).decode() if json else render(answer))


@app.command()
def verify(
    state: StateOption = _SEND_STATE,
    json: JsonOption = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is different, and compare that again.")] = False,
) -> None:
    """Compare both sides; 0 if they are identical (with --repair: now), 1 if not, with each difference listed."""
    from replicator.observe.control import ask
    from replicator.verify.report import Report

    report = Report(json=json, repair=repair)
    for answer in ask(state, {"op": "verify", "repair": repair}):
        _raise_error(answer)
        report.take(answer)
    raise typer.Exit(0 if report.good else 1)


@app.command()
def doctor(json: JsonOption = False) -> None:
    """Show what this kernel offers, which sensor would be used, and what is missing."""
    from replicator.doctor import examine, render

    report = examine()
    typer.echo(orjson.dumps(report).decode() if json else render(report))
    raise typer.Exit(0 if report["usable"] else 3)


@app.command()
def trace(path: Annotated[Path, typer.Argument(metavar="PATH")], json: JsonOption = False) -> None:
    """Show the live write ranges under a directory: file, offset, length, process."""
    from replicator.trace.tracer import Tracer

    _as_root()
    _serve(Tracer(path.absolute(), as_json=json), None, None, lambda: None)


@app.command()
def unhook(state: StateOption = _SEND_STATE) -> None:
    """Remove the hooks that a stopped sender left in the kernel."""
    from replicator.keeper.hooks import unhook as remove

    _as_root()
    remove(state.absolute())


@app.command()
def demo(
    seconds: Annotated[int, typer.Option("--seconds", metavar="N", min=1, max=3600)] = 10, json: JsonOption = False
) -> None:
    """Run both ends on loopback with a mixed workload, show live lag, and verify the result."""
    from replicator.demo import Demo

    _as_root()
    raise typer.Exit(Demo(seconds, as_json=json).run())


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"rsyncfs {__version__}")
        raise typer.Exit(0)


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
        app(standalone_mode=True)
    except UsageError as error:
        _fail(error, UsageError.exit_code)
    except RsyncfsError as error:
        _fail(error, error.exit_code)
    except KeyboardInterrupt:
        _fail(RsyncfsError("interrupted"), 1)
