"""Whether ``cargo test --doc NAME`` meets code in the documentation of a library.

Source: the rustdoc book, "Documentation tests"; the name of such a test is ``file - path::item (line 3)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from apr_falsify.contracts.cargo_command import CargoTest
from apr_falsify.contracts.resolution import RESOLVED, UNCHECKED, Resolution, did_you_mean, missing
from apr_falsify.symbols.cargo import Package
from apr_falsify.symbols.rust_documented import ANY_NAME
from apr_falsify.symbols.rust_project import RustProject

_OF_FUNCTIONS = ("function", "method")


def why_not_documented(
    wanted: str, libraries: Sequence[tuple[RustProject, Package]], command: CargoTest
) -> Resolution:
    """Say that no code in documentation is named so; what a macro or an included file may hold is not known.

    Args:
        wanted: a part of the name of the test.
        libraries: the packages that are tested, and whose they are.
        command: what tests them.

    """
    last = wanted.rpartition("::")[2]
    documented: set[str] = set()
    off = ""
    for project, package in libraries:
        for target in package.targets:
            if target.kind != "lib":
                continue
            if not target.has_doctests:
                off = f"the library of {package.name} says doctest = false"
                continue
            crate = project.tests(package, target).crate
            if (
                any(one.words is None for one in crate.makers)
                or ANY_NAME in crate.documented
                or any(wanted in file for file in crate.files)
            ):
                return UNCHECKED
            documented |= crate.documented
    if not last.replace("_", "").isalnum() or any(last in name for name in documented):
        return RESOLVED
    if any(_may_be_around(last, project) for project, _ in libraries):
        return UNCHECKED
    message = f"no code in the documentation of {command.package or 'the crate'} is named {wanted!r}"
    if off:
        return missing("test-not-collected", f"{message}: {off}")
    return missing(
        "test-not-found", message, did_you_mean(libraries[0][0].tree.nearest(last, sorted(documented)))
    )


def _may_be_around(name: str, project: RustProject) -> bool:
    """Whether a module or a type has the name: the items in it carry it too."""
    found = project.tree.find(name, limit=200)
    return any(one.kind not in _OF_FUNCTIONS for _, one in found)
