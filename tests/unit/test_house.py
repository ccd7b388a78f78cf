"""The project as a whole keeps what it says of itself: doors, locks, licences, links."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from replicator import __version__, errors, resources
from replicator.errors import EnvironmentFault

PROJECT = Path(__file__).resolve().parents[2]
DOORS = ["help", "install", "demo", "test", "test-kernels", "soak", "bench", "lint", "clean"]
DOCUMENTS = sorted(
    path
    for path in PROJECT.rglob("*.md")
    if not {".venv", "build", ".git", ".pytest_cache"} & set(path.relative_to(PROJECT).parts)
)
SOURCES = sorted((PROJECT / "replicator").rglob("*.py"))


def settings() -> dict[str, Any]:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def canonical(requirement: str) -> str:
    """The name in a requirement, as indexes compare it."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def locked(name: str) -> dict[str, str]:
    """Versions in a lock file. Every package must have one, and a hash."""
    text = re.sub(r"\\\n", " ", (PROJECT / name).read_text())
    versions = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            pinned = re.match(r"(\S+)==(\S+).*--hash=sha256:[0-9a-f]{64}", line)
            assert pinned is not None, f"{name}: {line[:80]}"
            versions[canonical(pinned[1])] = pinned[2]
    return versions


# Doors


@pytest.mark.parametrize("door", DOORS)
def test_make_has_the_door_and_help_names_it(door: str) -> None:
    plan = subprocess.run(["make", "-n", door], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert plan.returncode == 0, plan.stderr
    told = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert re.search(rf"(?m)^ *make {door} +\S", told.stdout)


def test_the_readme_begins_with_the_two_commands() -> None:
    commands = [line.strip() for line in (PROJECT / "README.md").read_text().splitlines() if line.startswith("    ")]
    assert [command.split("#")[0].strip() for command in commands[:2]] == ["make demo", "make test"]


@pytest.mark.parametrize("door", ["install", "demo", "test", "test-kernels", "soak", "bench", "bench-gap"])
def test_no_door_leaves_the_code_to_be_compiled_at_each_start(door: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", door], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert "-m compileall -q replicator" in done.stdout


def test_continuous_integration_runs_what_the_readme_says() -> None:
    script = (PROJECT / ".ci/run").read_text()
    assert os.access(PROJECT / ".ci/run", os.X_OK)
    assert "set -euo pipefail" in script
    assert re.search(r"(?m)^make lint$", script)
    assert re.search(r"(?m)^make test ", script)
    assert re.search(r"(?m)^make test-kernels ", script)


@pytest.mark.parametrize("script", ["scripts/bootstrap", "scripts/kernels", "tests/kernel/guest.sh", ".ci/run"])
def test_the_shell_takes_the_script(script: str) -> None:
    subprocess.run(["bash", "-n", script], cwd=PROJECT, check=True)


def test_machines_boot_only_by_their_own_door() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"(?m)^tests/unit/", told.stdout)
    assert not re.search(r"(?m)^tests/kernel/", told.stdout)


def test_bootstrap_tells_how_it_is_used() -> None:
    done = subprocess.run(["scripts/bootstrap", "nonsense"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "usage: scripts/bootstrap run|test|bench|kernels\n"


def test_every_package_that_bootstrap_installs_is_explained() -> None:
    script = (PROJECT / "scripts/bootstrap").read_text()
    lists = re.findall(r"wanted\+?=\(([^)]*)\)", script)
    assert len(lists) == 7
    explained = set(re.findall(r"[a-z0-9-]+", (PROJECT / "docs/dependencies.md").read_text()))
    packages = {package for entries in lists for package in entries.split()}
    assert packages - explained == set()


# Versions and locks


def test_the_command_is_the_package_s_main() -> None:
    assert settings()["project"]["scripts"] == {"rsyncfs": "replicator.cli:main"}
    assert settings()["project"]["name"] == "rsyncfs"


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"(?m)^## {re.escape(__version__)}\b", (PROJECT / "CHANGELOG.md").read_text())


def test_everything_that_is_needed_is_locked_with_hashes() -> None:
    project = settings()["project"]
    run, development = locked("requirements.lock"), locked("requirements-dev.lock")
    needed = {canonical(entry) for entry in (*project["dependencies"], *project["optional-dependencies"]["build"])}
    assert needed <= run.keys()
    assert {canonical(entry) for entry in project["optional-dependencies"]["dev"]} <= development.keys()
    assert {name: development.get(name) for name in run} == run


def test_this_environment_is_the_locked_one() -> None:
    assert {name: version(name) for name in locked("requirements-dev.lock")} == locked("requirements-dev.lock")


def test_no_package_index_is_named() -> None:
    for path in [
        *PROJECT.glob("*.lock"),
        PROJECT / "pyproject.toml",
        PROJECT / "Makefile",
        PROJECT / "scripts/bootstrap",
        PROJECT / "scripts/kernels",
    ]:
        assert not re.search(r"index-url|find-links|trusted-host [^\\]|pypi\.org/simple", _without_no_options(path)), (
            path
        )


def _without_no_options(path: Path) -> str:
    return re.sub(r"--no-emit-[a-z-]+", "", path.read_text())


def test_bcc_is_not_asked_of_the_index() -> None:
    assert "bcc" not in locked("requirements-dev.lock")
    assert "bcc" not in {canonical(entry) for entry in settings()["project"]["dependencies"]}


def test_what_is_imported_is_declared() -> None:
    ours = {"replicator", "tests"}
    declared = {canonical(entry).replace("-", "_") for entry in settings()["project"]["dependencies"]} | {"bcc"}
    foreign: dict[str, str] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                modules = [node.module]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in ours:
                    foreign[top] = str(path.relative_to(PROJECT))
    assert {top: path for top, path in foreign.items() if top not in declared} == {}


# Modules


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_each_module_says_what_it_is(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said, f"{path} has no docstring"


def test_the_rooms_that_compute_do_no_input_or_output() -> None:
    doors = {"socket", "selectors", "subprocess", "threading", "sqlite3", "asyncio", "multiprocessing"}
    pure = [
        *(PROJECT / "replicator/dirty").glob("*.py"),
        *(PROJECT / "replicator/link" / name for name in ("frame.py", "message.py", "session.py")),
        *(
            PROJECT / "replicator/source" / name
            for name in ("outbox.py", "debts.py", "epochs.py", "news.py", "reads.py", "suspicion.py", "verdicts.py")
        ),
        *(PROJECT / "replicator" / name for name in ("mirror/plan.py", "tree/index.py", "model.py")),
    ]
    assert len(pure) > 8
    for path in pure:
        tree = ast.parse(path.read_text())
        imported = {
            name.partition(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not imported & doors, f"{path.relative_to(PROJECT)} imports {imported & doors}"


# Licences


def test_the_licence_is_there_in_full() -> None:
    text = (PROJECT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_each_ebpf_file_carries_both_licences() -> None:
    files = [*(PROJECT / "ebpf").glob("*.h"), *(PROJECT / "ebpf").glob("*.c")]
    assert len(files) >= 2
    for path in files:
        assert path.read_text().splitlines()[0] == "/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */", path.name


# Documents


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_within_the_project_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_decisions_are_all_listed() -> None:
    directory = PROJECT / "docs/decisions"
    listed = set(re.findall(r"\]\(([^)]+)\)", (directory / "README.md").read_text()))
    assert listed == {path.name for path in directory.glob("[0-9]*.md")}


def test_the_readme_tells_the_exit_codes_that_errors_have() -> None:
    told = set(re.findall(r"(?m)^\| ([0-9]) \|", (PROJECT / "README.md").read_text()))
    kinds: list[type[errors.RsyncfsError]] = [errors.RsyncfsError, *errors.RsyncfsError.__subclasses__()]
    assert {str(kind.exit_code) for kind in kinds} | {"0"} == told


def test_the_readme_lists_the_commands_that_there_are() -> None:
    listed = re.findall(r"(?m)^\| `rsyncfs ([a-z]+)", (PROJECT / "README.md").read_text())
    told = subprocess.run([sys.executable, "-m", "replicator", "--help"], capture_output=True, text=True, check=True)
    commands = re.findall(r"(?m)^  ([a-z]+)  ", told.stdout.partition("Commands:")[2])
    assert sorted(listed) == sorted(commands)


# What comes along with the package


def test_the_ebpf_sources_are_found() -> None:
    assert (resources.ebpf_directory() / "event.h").is_file()


def test_a_wheel_carries_the_ebpf_sources_and_finds_them(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=PROJECT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("rsyncfs-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "from replicator.resources import ebpf_directory as d; print(d(), *sorted(p.name for p in d().iterdir()))",
        ],
        cwd=tmp_path / "site",
        check=True,
        capture_output=True,
        text=True,
    )
    where, *files = found.stdout.split()
    assert Path(where) == tmp_path / "site/replicator/_ebpf"
    assert set(files) == {path.name for path in (PROJECT / "ebpf").iterdir()}


def test_an_installation_without_its_ebpf_sources_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "replicator")
    with pytest.raises(EnvironmentFault, match="install rsyncfs again"):
        resources.ebpf_directory()


def test_the_crystal_library_from_the_index_is_not_taken_for_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    crystals = ModuleType("bcc")
    crystals.__file__ = "/somewhere/bcc/__init__.py"
    monkeypatch.setitem(sys.modules, "bcc", crystals)
    with pytest.raises(EnvironmentFault, match=r"/somewhere/bcc.*uninstall it and install python3-bpfcc"):
        resources.load_bcc()


def test_a_missing_bcc_is_named_with_the_packages_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(EnvironmentFault, match="install python3-bpfcc"):
        resources.load_bcc()


def test_the_distribution_s_bcc_is_here() -> None:
    assert hasattr(resources.load_bcc(), "BPF")
