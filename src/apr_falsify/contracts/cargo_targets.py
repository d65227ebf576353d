"""Which targets of a package a cargo command tests.

Source: ``cargo test --help``, "Target Selection".
"""

from __future__ import annotations

import fnmatch

from apr_falsify.contracts.cargo_command import CargoTest
from apr_falsify.symbols.cargo import CargoTarget


def is_selected(target: CargoTarget, command: CargoTest) -> bool:
    """Whether a command tests a target; where it names none, those that are tested by default."""
    groups = {kind for kind, name in command.targets if not name}
    if not command.targets:
        return target.is_tested
    if "all" in groups or target.kind in groups or ("tests" in groups and target.is_tested):
        return True
    return any(
        kind == target.kind and fnmatch.fnmatchcase(target.name, name)
        for kind, name in command.targets
        if name
    )


def targets_shown(command: CargoTest) -> str:
    """The targets that a command names, as it names them."""
    return " ".join(f"--{kind} {name}".strip() for kind, name in command.targets) or "the default targets"
