"""Typed errors and exit codes: the one place that knows what a process exit means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """What a process of ours says by its exit status (design section 3)."""

    OK = 0
    DIVERGENCE = 1
    USAGE = 2
    INTERNAL = 3
    INCONCLUSIVE = 4


class AprFalsifyError(Exception):
    """Unusable input or an unusable environment, described so that a reader can act on it.

    Args:
        what: what is wrong, in one sentence.
        where: the file, option or stage it concerns.
        expected: what would have been right.
        remedy: what to do next, a command where there is one.

    """

    exit_code = ExitCode.USAGE

    def __init__(self, what: str, *, where: object = None, expected: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.expected = expected
        self.remedy = remedy

    def at(self, where: object) -> Self:
        """Return the same error, placed at ``where`` unless it names a place already."""
        if self.where is None and where is not None:
            self.where = str(where)
        return self

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [head]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.remedy:
            lines.append(f"  try: {self.remedy}")
        return "\n".join(lines)


class UsageError(AprFalsifyError):
    """The command line asks for something that cannot be."""


class StageError(AprFalsifyError):
    """A stage name that no table knows, or a stage the model does not have."""


class LayerRangeError(AprFalsifyError):
    """A layer range that is malformed or outside the model."""


class AprtError(AprFalsifyError):
    """A file that is not a whole APRT stage file."""


class TraceError(AprFalsifyError):
    """A trace directory that cannot be trusted."""


class TokensError(AprFalsifyError):
    """Token ids that are missing, out of range, or not those of the trace."""


class PassesError(AprFalsifyError):
    """Passes that do not add up to the tokens, or positions and padding that cannot be."""


class GeometryError(AprFalsifyError):
    """Model geometry that is missing, contradictory or absurd."""


class UnknownFamilyError(AprFalsifyError):
    """A model family that the table of families does not list."""


class FamilyError(AprFalsifyError):
    """A model family whose description is not whole, or contradicts itself."""


class ModelError(AprFalsifyError):
    """A model file or directory that cannot be used."""


class MissingDependencyError(AprFalsifyError):
    """An optional package that this command needs is not installed."""


class DeviceError(AprFalsifyError):
    """The requested device is not there; it is never replaced by another."""


class ContractError(AprFalsifyError):
    """A contract that cannot be read, or lacks what is requested of it."""


class UndecidedError(AprFalsifyError):
    """An array that a verdict would rest on may be one stage or another, or of another run."""

    exit_code = ExitCode.INCONCLUSIVE


class EvidenceError(AprFalsifyError):
    """A bundle that cannot be read or does not verify; nothing may rest on it."""


class ProcessError(AprFalsifyError):
    """A foreign program that could not be run, failed, or left nothing usable."""


class SweepError(AprFalsifyError):
    """A sweep file that cannot be read, or a directory of runs that cannot be trusted."""


class OutputError(AprFalsifyError):
    """The result could not be written."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``known``'s closest match to ``name`` as a hint, or an empty string."""
    by_case = {one.casefold(): one for one in known}
    match = difflib.get_close_matches(name.casefold(), list(by_case), n=1, cutoff=0.5)
    return f"did you mean {by_case[match[0]]!r}?" if match else ""
