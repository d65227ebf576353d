"""Replacing a contract's bytes: under a lock, whole or not at all, and only where they are as they were."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from apr_falsify.errors import ContractError, OutputError

_WAIT_S = 10.0


def replace_bytes(path: Path, before: bytes, after: bytes) -> None:
    """Give the contract at ``path`` the bytes ``after``, where it still has the bytes ``before``.

    The lock is the kernel's and ends with the process. What a killed one left beside the contract has a fixed
    name and is written over by the next.

    Raises:
        ContractError: the contract changed between, or another process holds it.
        OutputError: it cannot be written; the contract is as it was.

    """
    real = Path(os.path.realpath(path))
    try:
        with _locked(real, path):
            if real.read_bytes() != before:
                raise _changed(path)
            _write(real, after)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=path) from error


def _changed(path: Path) -> ContractError:
    return ContractError(
        "the contract changed between: another process wrote it after it was read",
        where=path,
        remedy="look at what changed, and run the command again",
    )


@contextlib.contextmanager
def _locked(real: Path, path: Path) -> Iterator[None]:
    """Hold the file itself; one that was replaced while waiting is not the contract any more."""
    descriptor = os.open(real, os.O_RDWR | os.O_CLOEXEC)
    try:
        _wait_for(descriptor, path)
        if not os.path.samestat(os.fstat(descriptor), os.stat(real)):
            raise _changed(path)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, path: Path) -> None:
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise ContractError(
                    "another process is promoting this contract", where=path, remedy="wait for it to end"
                ) from None
            time.sleep(0.01)


def _write(real: Path, data: bytes) -> None:
    beside = real.with_name(f".{real.name}.promoting")
    beside.unlink(missing_ok=True)
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, os.stat(real).st_mode & 0o7777)
            os.fsync(descriptor)
        os.replace(beside, real)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(real.parent)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems know no fsync of a directory
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
