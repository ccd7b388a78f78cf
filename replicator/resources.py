"""What rsyncfs needs beside its own modules: the eBPF sources and the BCC bindings.

Takes nothing, gives paths, and the one module that no package index provides. An editable install finds the files in
the source tree beside the package, a wheel inside the package. It does not promise that they compile.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

from replicator.errors import EnvironmentFault

_PACKAGE = Path(__file__).resolve().parent


def ebpf_directory() -> Path:
    """The directory with the eBPF sources (event.h and its neighbours), absolute.

    EnvironmentFault if the installation lacks it.
    """
    for candidate in (_PACKAGE / "_ebpf", _PACKAGE.parent / "ebpf"):
        if (candidate / "event.h").is_file():
            return candidate
    raise EnvironmentFault(
        f"the eBPF sources are missing beside {_PACKAGE}: the installation is incomplete; install rsyncfs again"
    )


def load_bcc() -> ModuleType:
    """The distribution's BCC bindings, imported.

    EnvironmentFault if they are missing, or if the package of the same name from PyPI (crystal lattices) shadows them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bcc = importlib.import_module("bcc")
    except ImportError as error:
        raise _no_bcc(error) from error
    if not hasattr(bcc, "BPF"):
        raise EnvironmentFault(
            f"the module bcc at {bcc.__file__} is not the BPF Compiler Collection but an unrelated package from PyPI: "
            "uninstall it and install python3-bpfcc"
        )
    return bcc


def bcc_origin() -> Path:
    """The file of the BCC bindings, which are not imported for that. EnvironmentFault if they are missing."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        raise _no_bcc("No module named 'bcc'")
    return Path(found.origin)


def _no_bcc(why: object) -> EnvironmentFault:
    return EnvironmentFault(
        f"the BCC bindings cannot be imported ({why}): install python3-bpfcc (Debian, Ubuntu) or python3-bcc "
        "(Fedora), and run rsyncfs from an environment that sees the system's packages"
    )
