"""The index of one source file: every name it defines, where, inside what, and whether it is a test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from apr_falsify.symbols.states import quickly_pickled


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One name a file defines.

    ``parents`` are the names it is nested in, outermost first: modules, classes, impl types, functions.
    ``kind`` is the language's own word: function, method, class, struct, enum, variant, constant ...
    ``marks`` are what decides whether a test runs: ``test``, ``ignored``, ``fixture``, ``cfg(...)``.
    """

    name: str
    kind: str
    line: int
    parents: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    @property
    def qualified(self) -> str:
        """The name with everything it is nested in, ``A::b``."""
        return "::".join((*self.parents, self.name))

    @property
    def is_test(self) -> bool:
        """Whether the language marks it as a test (Rust); pytest's own rules live in ``collect``."""
        return "test" in self.marks


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShape:
    """What decides which methods a class has and whether pytest collects it."""

    bases: tuple[str, ...] = ()
    has_init: bool = False
    is_test_off: bool = False


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolIndex:
    """Everything one file defines, and the other files it pulls in by ``include!``, ``mod`` or import.

    ``error_line`` is set where the file does not parse: then absence of a name proves nothing.
    ``possible`` holds identifiers handed to item-level macros, which may define anything from them.
    """

    language: str
    definitions: tuple[Definition, ...] = ()
    error_line: int | None = None
    error: str = ""
    includes: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = ()  # (module name, #[path] or "")
    reexports: tuple[tuple[str, str], ...] = ()  # (name it is known by here, path it comes from)
    possible: frozenset[str] = frozenset()
    classes: dict[str, ClassShape] = field(default_factory=dict)
    traits_of: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def named(self, name: str) -> Iterator[Definition]:
        """Every definition called ``name``."""
        return (one for one in self.definitions if one.name == name)

    @property
    def names(self) -> set[str]:
        """All names defined here."""
        return {one.name for one in self.definitions}
