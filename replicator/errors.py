"""The errors that reach a person, each with its exit code of the command-line contract.

Every message is one sentence or two: the operation, the path or address, the cause, and what to do.
"""

from __future__ import annotations


class RsyncfsError(Exception):
    """Base of all errors that a command reports without a traceback."""

    exit_code = 1


class UsageError(RsyncfsError):
    """The command line or its values are wrong."""

    exit_code = 2


class EnvironmentFault(RsyncfsError):
    """This host, kernel or directory cannot do what was asked: not root, no BPF, port taken, no such source."""

    exit_code = 3


class RemoteError(RsyncfsError):
    """The peer sent what the protocol does not allow. The connection is closed; the process goes on."""


class RefusedError(RsyncfsError):
    """The peer refuses this session for a reason that trying again will not mend."""

    exit_code = 3
