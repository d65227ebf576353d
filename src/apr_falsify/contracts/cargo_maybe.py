"""What a cargo filter may mean beside the tests that are listed: made by macros, documentation, cases."""

from __future__ import annotations

from apr_falsify.contracts.cargo_command import CargoTest
from apr_falsify.contracts.filterset import Expression, tests_named
from apr_falsify.symbols.cargo import CargoTarget
from apr_falsify.symbols.rust_build import Build
from apr_falsify.symbols.rust_crate import Maker
from apr_falsify.symbols.rust_project import Tests


def may_make(maker: Maker, wanted: str | Expression, command: CargoTest) -> bool:
    """Whether a macro that makes tests of any name may make the one that is asked for."""
    if not isinstance(wanted, str):
        return True
    return not command.is_exact or not maker.module or wanted.startswith(f"{maker.module}::")


def may_be_case(wanted: str | Expression, command: CargoTest, build: Build, tests: Tests) -> bool:
    """Whether what is asked for may be a case of a test whose cases have names that are not known."""
    names = [wanted] if isinstance(wanted, str) else tests_named(wanted)
    whole = command.is_exact and isinstance(wanted, str)
    found = (test for name in names for test in tests.leading_to(name, whole=whole))
    return any(not build.why_off(test.cfgs) for test in found)


def may_be_documented(
    wanted: str | Expression, command: CargoTest, documented: set[str], target: CargoTarget
) -> bool:
    """Whether the code of a documentation comment may be what is meant; it is named for its item."""
    if target.kind != "lib" or command.targets or command.is_nextest or not isinstance(wanted, str):
        return False
    if not target.has_doctests:
        return False
    last = wanted.rpartition("::")[2]
    return bool(last) and any(last in name for name in documented)
