"""Conditions of Rust: ``cfg`` predicates and the attributes that carry them, read and decided.

Rules: the Rust reference, "Conditional compilation". A predicate is decided in three values: it holds, it
does not, or only the machine and the build can tell (``None``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from apr_falsify.symbols.rust_cases import Cases

Decide = Callable[[str, str], bool | None]
"""Name of an option and its value (empty where it has none) -> whether it is set."""

_TOKEN = re.compile(r'\s*(?:(?P<word>(?:r#)?[\w:]+)|"(?P<text>[^"]*)"|(?P<sign>[(),=]))')
Predicate = tuple[str, tuple["Predicate", ...], str]
"""``all``, ``any``, ``not`` and what they hold; or an option's name, nothing, and its value."""


@functools.lru_cache(8192)
def parse_cfg(text: str) -> Predicate | None:
    """Read a predicate, ``any(unix, feature = "x")``; ``None`` where it is none."""
    tokens = [(one["word"] or "", one["text"], one["sign"] or "") for one in _TOKEN.finditer(text)]
    try:
        predicate, at = _predicate(tokens, 0)
    except (IndexError, ValueError, RecursionError):
        return None
    return predicate if at == len(tokens) else None


def _predicate(tokens: list[tuple[str, str | None, str]], at: int) -> tuple[Predicate, int]:
    word = tokens[at][0]
    if not word:
        raise ValueError("a predicate begins with a word")
    following = tokens[at + 1][2] if at + 1 < len(tokens) else ""
    if following == "=":
        value = tokens[at + 2][1]
        if value is None:
            raise ValueError("a value is a text")
        return (word, (), value), at + 3
    if following != "(":
        return (word, (), ""), at + 1
    inner: list[Predicate] = []
    at += 2
    while tokens[at][2] != ")":
        one, at = _predicate(tokens, at)
        inner.append(one)
        at += tokens[at][2] == ","
    return (word, tuple(inner), ""), at + 1


def holds(text: str, decide: Decide) -> bool | None:
    """Whether a predicate holds; ``None`` where ``decide`` cannot tell, or it is no predicate."""
    predicate = parse_cfg(text)
    return None if predicate is None else _holds(predicate, decide)


def _holds(predicate: Predicate, decide: Decide) -> bool | None:
    word, inner, value = predicate
    found = [_holds(one, decide) for one in inner]
    if word == "not" and len(found) == 1:
        return None if found[0] is None else not found[0]
    if word == "all":
        return False if False in found else None if None in found else True
    if word == "any":
        return True if True in found else None if None in found else False
    if inner:
        return None  # `version(..)`, `target(..)`: unstable, and not ours to know
    return {"true": True, "false": False}.get(word, decide(word, value))


def options_of(text: str) -> list[tuple[str, str]]:
    """Return the options that a predicate names, each with its value."""
    pending, found = [parse_cfg(text)], []
    while pending:
        one = pending.pop()
        if one is not None:
            pending.extend(one[1])
            if not one[1] and one[0] not in ("all", "any", "not"):
                found.append((one[0], one[2]))
    return found[::-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What the attributes before an item say of it.

    Attributes:
        cfgs: predicates that must all hold for it to be compiled.
        ignores: predicates under any of which it is ignored; ``true`` for a plain ``#[ignore]``.
        tests: predicates under any of which it is a test.
        paths: predicates and the file that ``#[path]`` names under each.
        cases: names of its cases, below its own; none where it is one test, ``None``: not known.
        unknown: an attribute stands on it that may do anything.
        panics: it should panic.

    """

    cfgs: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    paths: tuple[tuple[str, str], ...] = ()
    cases: tuple[str, ...] | None = ()
    unknown: bool = False
    panics: bool = False


# attributes that neither make a test nor take one away: the language's own, and tools' and crates' known ones
_PLAIN = frozenset(
    """
    allow warn deny expect forbid doc inline cold must_use derive no_mangle track_caller deprecated
    automatically_derived rustfmt clippy instrument serial parallel traced_test macro_use macro_export
    recursion_limit no_std no_core feature target_feature repr non_exhaustive link export_name link_section
    used global_allocator proc_macro proc_macro_derive proc_macro_attribute rustversion type_length_limit
    coverage optimize diagnostic timeout allow_internal_unstable stable unstable file_serial
    """.split()  # noqa: SIM905 - a table of words reads best as words
)
_FOREIGN_RUNNERS = ("wasm_bindgen_test",)
_NAME = re.compile(
    r"\s*(?:unsafe\s*\(\s*)?(?P<path>(?:\w+\s*::\s*)*)(?:r#)?(?P<name>\w+)\s*(?P<rest>.*)$", re.DOTALL
)


def read_attributes(texts: list[str] | tuple[str, ...]) -> Attributes:
    """Read attributes as they stand between ``#[`` and ``]``."""
    reading = _Reading()
    for text in texts:
        reading.take(text, "true")
    return Attributes(
        cfgs=tuple(reading.cfgs),
        ignores=tuple(reading.ignores),
        tests=tuple(reading.tests),
        paths=tuple(reading.paths),
        cases=reading.cases.names(),
        unknown=reading.unknown,
        panics=reading.panics,
    )


class _Reading:
    def __init__(self) -> None:
        self.cfgs: list[str] = []
        self.ignores: list[str] = []
        self.tests: list[str] = []
        self.paths: list[tuple[str, str]] = []
        self.cases = Cases()
        self.unknown = self.panics = False

    def take(self, text: str, when: str) -> None:
        match = _NAME.match(text)
        if match is None:
            return
        name, rest, scope = match["name"], match["rest"], match["path"].replace(" ", "")
        if name == "cfg_attr" and not scope:
            self._conditional(rest, when)
        elif name == "cfg" and not scope:
            self.cfgs.append(_inside(rest) if when == "true" else f"any(not({when}), {_inside(rest)})")
        elif name == "ignore" and not scope:
            self.ignores.append(when)
        elif name == "path" and not scope:
            self.paths.append((when, "".join(re.findall(r'"([^"]*)"', rest)[:1])))
        elif name == "should_panic":
            self.panics = True
        else:
            self._other(name, scope, rest, when)

    def _conditional(self, rest: str, when: str) -> None:
        condition, *given = split_top(_inside(rest))
        for one in given:
            self.take(one, condition.strip() if when == "true" else f"all({when}, {condition.strip()})")

    def _other(self, name: str, scope: str, rest: str, when: str) -> None:
        if self.cases.take(name, scope, rest, when):
            self.tests.append(when)
        elif name == "bench" or name in _FOREIGN_RUNNERS:
            return
        elif name == "test" or "test" in name or name in ("quickcheck", "proptest", "property_test"):
            self.tests.append(when)
            self.unknown |= bool(scope) and scope.split("::")[0] not in _RUNTIMES
        elif name not in _PLAIN and scope.split("::")[0] not in (
            "rustfmt",
            "clippy",
            "tracing",
            "diagnostic",
        ):
            self.unknown = True


_RUNTIMES = (
    "tokio",
    "async_std",
    "actix_rt",
    "actix_web",
    "smol_potat",
    "futures_test",
    "core",
    "std",
    "test_log",
)


def _inside(rest: str) -> str:
    """``(a, b)`` -> ``a, b``."""
    return rest.strip().removeprefix("(").rpartition(")")[0].strip()


def split_top(text: str) -> list[str]:
    """Split at the commas that stand in no bracket and in no quoted text."""
    parts, depth, start, quoted = [], 0, 0, False
    for at, char in enumerate(text):
        quoted ^= char == '"'
        depth += 0 if quoted else (char in "([{") - (char in ")]}")
        if char == "," and depth == 0 and not quoted:
            parts.append(text[start:at])
            start = at + 1
    return [part for part in (*parts, text[start:]) if part.strip()]
