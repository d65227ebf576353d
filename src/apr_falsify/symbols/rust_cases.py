"""Names of the cases of one test function, as the crates rstest and test_case make them.

Source: rstest's documentation, "Creating parametrized tests"; test_case's, "Test case name".
"""

from __future__ import annotations

import re

_OPEN_CASES = frozenset(
    """
    test_matrix apply template values parameterized dir_cases files test_each quickcheck_cases
    rstest_parametrize test_casing
    """.split()  # noqa: SIM905 - a table of words reads best as words
)
CASES = _OPEN_CASES | {"rstest", "case", "test_case"}
"""Attributes that make a test of a function, or several."""
_DESCRIBED = re.compile(r';\s*"((?:[^"\\]|\\.)*)"\s*\)?\s*$')
_MAY_BE_IGNORED = re.compile(r"=>\s*(?:ignore|inconclusive)")
_OF_PARAMETERS = re.compile(r"#\s*\[\s*(?:\w+\s*::\s*)?(?:values|files)\b")


class Cases:
    """The cases that attributes give a function, in the order they stand."""

    def __init__(self) -> None:
        self._named: list[str] = []
        self._numbered: list[str] = []
        self._is_open = False

    def take(self, name: str, scope: str, rest: str, when: str) -> bool:
        """Take an attribute; return whether it is one of cases."""
        first = scope.split("::")[0]
        if first == "case":  # `#[case::description(..)]`
            name, described = "case", name
        else:
            described = ""
        if name not in CASES:
            return False
        if when != "true" or name in _OPEN_CASES:
            self._is_open = True
        elif name == "rstest":
            self._is_open |= bool(rest.strip())  # `#[rstest(a, case(1))]`, as it was once written
        elif name == "case" and first != "test_case":
            self._numbered.append(described)
        else:
            self._described(rest)
        return True

    def _described(self, rest: str) -> None:
        described = _DESCRIBED.search(rest)
        if described is None or _MAY_BE_IGNORED.search(rest):
            self._is_open = True
        else:
            self._named.append(_escaped(described[1]))

    def names(self) -> tuple[str, ...] | None:
        """The names below the function's own; none where it is one test, ``None``: not known."""
        if self._is_open:
            return None
        digits = len(str(len(self._numbered)))
        numbered = (
            f"case_{at:0{digits}}" + (f"_{described}" if described else "")
            for at, described in enumerate(self._numbered, 1)
        )
        return (*self._named, *numbered)


def has_more_cases(signature: str) -> bool:
    """Whether parameters of a function multiply its cases: ``#[values(1, 2)] a: u8``."""
    return bool(_OF_PARAMETERS.search(signature))


def _escaped(text: str) -> str:
    """What test_case makes of a description: words in lower case, one ``_`` for all between them."""
    name = re.sub(r"[\W_]+", "_", text.lower())
    return name if re.match(r"[a-z_]", name) else f"_{name}"
