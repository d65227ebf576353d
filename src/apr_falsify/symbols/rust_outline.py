"""What one Rust file holds for its crate: modules, tests, included files and macros, with their conditions.

Read without a grammar, so that a crate of ten thousand files is read in seconds: comments and literals are
blanked, braces paired, and only what stands at the level of items is looked at. What a file defines is for
:mod:`apr_falsify.symbols.rust`; this says only what decides which of its tests are compiled and run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from apr_falsify.symbols.rust_cases import has_more_cases
from apr_falsify.symbols.rust_cfg import Attributes, read_attributes
from apr_falsify.symbols.rust_documented import documented
from apr_falsify.symbols.rust_text import blanked, braces_of, closing
from apr_falsify.symbols.states import quickly_pickled

# each alternative begins with one sign, so that the engine skips to the next of them
_ITEM = re.compile(
    r"[{};]|#!?\s*\[|(?:m(?<!\wm)od|f(?<!\wf)n)\s+(?P<name>(?:r#)?[^\W\d]\w*)"
    r"|m(?<!\wm)acro_rules\s*!\s*(?P<rules>\w+)\s*|!\s*(?=[({\[])"
)
_LAST_WORD = re.compile(r"(\w+)\s*$")
_MODULE_FOLLOWS = re.compile(r"\s*([{;])")
_BODY = re.compile(r"[{;]")
_INNER = re.compile(r"\s*#!\s*\[")
_WORD = re.compile(r"[^\W\d]\w*")
_MOST_WORDS = 4000
# nothing, a truth, or a text that is equal to itself
_HOLLOW = re.compile(
    r"(?:\s*let\s+(?:mut\s+)?_?\w+\s*(?::\s*\w+\s*)?=\s*[\w.]*\s*;)*"
    r"(?:\s*(?:assert!\s*\(\s*true\s*(?:,[^;]*)?\)|assert_eq!\s*\(\s*(?P<one>\w+)\s*,\s*(?P=one)\s*(?:,[^;]*)?\));?)+\s*"
)


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class TestItem:
    """A function that is a test, or that an attribute or macro may make one.

    Attributes:
        parts: the modules of the file it is in, and its name.
        line: where it stands.
        cfgs: predicates that must hold for it to be compiled; those of modules around it too.
        ignores: predicates under any of which it is ignored.
        cases: names of its cases, below its own; none where it is one test, ``None``: not known.
        unsure: a macro or an unknown attribute decides what becomes of it.
        hollow: ``true`` where its body holds nothing but assertions that are true whatever the code does,
            ``empty`` where it holds nothing at all.

    """

    parts: tuple[str, ...]
    line: int
    cfgs: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    cases: tuple[str, ...] | None = ()
    unsure: bool = False
    hollow: str = ""


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleItem:
    """A ``mod name;``, or an ``include!``, which has no name.

    Attributes:
        parts: the modules of the file it is in.
        name: of the module; empty for an included file.
        line: where it stands.
        cfgs: predicates that must hold for it to be there.
        paths: predicates, and the file that is named under each; empty where none is.
        folders: the folders that the inline modules around it stand for.
        unsure: it stands within a macro.

    """

    parts: tuple[str, ...]
    name: str
    line: int
    cfgs: tuple[str, ...] = ()
    paths: tuple[tuple[str, str], ...] = ()
    folders: tuple[str, ...] = ()
    unsure: bool = False


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class MacroCall:
    """A macro called where items stand: it may make anything.

    Attributes:
        parts: the modules of the file it is in.
        name: of the macro.
        line: where it stands.
        words: identifiers it is given; ``None`` where they are too many to keep.
        cfgs: predicates that must hold for it to be there.
        pastes: it holds a test whose name is put together within it.

    """

    parts: tuple[str, ...]
    name: str
    line: int
    words: frozenset[str] | None
    cfgs: tuple[str, ...] = ()
    pastes: bool = False


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class MacroRules:
    """A ``macro_rules!``.

    Attributes:
        name: of the macro.
        makes_tests: its text holds a test attribute.
        functions: names of functions that stand in it as they are.
        calls: macros that it calls.
        pastes: it puts names together, so that they stand nowhere.
        modules: how many modules it writes, in which its functions may stand.

    """

    name: str
    makes_tests: bool
    functions: tuple[str, ...]
    calls: tuple[str, ...]
    pastes: bool
    modules: int = 0


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What one file holds for its crate; ``cfgs`` are its own, from ``#![cfg(..)]``.

    ``documented`` are the names of items whose documentation holds code, which is tested too; the empty name
    stands for the file's own.
    """

    cfgs: tuple[str, ...] = ()
    tests: tuple[TestItem, ...] = ()
    modules: tuple[ModuleItem, ...] = ()
    calls: tuple[MacroCall, ...] = ()
    rules: tuple[MacroRules, ...] = ()
    documented: frozenset[str] = frozenset()


def outline_rust(source: bytes) -> Outline:
    """Read the outline of one file; bytes that are no Rust yield what can be made of them."""
    text = source.decode("utf-8", "replace")
    return _Scanner(text).outline()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where items stand: the modules around them, their folders, conditions, and whether in a macro."""

    parts: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    cfgs: tuple[str, ...] = ()
    unsure: bool = False


_RULES_TEST = re.compile(r"#\s*\[[^\]]*(?:\btest|test\b|rstest|case)")
_PASTED_TEST = re.compile(
    r"#\s*\[(?!\s*cfg\b)[^\]]*(?:\btest|test\b)[^\]]*\]"
    r"(?:\s*#\s*\[(?:[^\[\]]|\[[^\[\]]*\])*\])*\s*"  # further attributes
    r"(?:pub\s*\([^)]*\)\s*|(?:pub|async|unsafe|const)\s+|extern\s*(?:\"[^\"]*\"\s*)?)*"
    r"fn\s+(?:\[\s*<|\w*~)"
)
_RULES_FUNCTION = re.compile(r"\b(?:fn|mod)\s+(\w+)")
_RULES_MODULE = re.compile(r"\bmod\s+[\w$]+\s*\{")
_CALL = re.compile(r"(\w+)\s*!\s*[({\[]")


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.code = blanked(text)
        self.closes = braces_of(self.code)
        self.cfgs: list[str] = []
        self.tests: list[TestItem] = []
        self.modules: list[ModuleItem] = []
        self.calls: list[MacroCall] = []
        self.rules: list[MacroRules] = []
        self._counted = (0, 1)

    def outline(self) -> Outline:
        self.items(0, len(self.code), _Place())
        return Outline(
            cfgs=tuple(self.cfgs),
            tests=tuple(self.tests),
            modules=tuple(self.modules),
            calls=tuple(self.calls),
            rules=tuple(self.rules),
            documented=documented(self.text, self.code),
        )

    def line(self, at: int) -> int:
        """Items are met in order, so lines are counted on from the last one requested."""
        start, line = self._counted if self._counted[0] <= at else (0, 1)
        self._counted = (at, line + self.text.count("\n", start, at))
        return self._counted[1]

    def items(self, at: int, end: int, place: _Place) -> None:
        """Go through the items between two offsets; what they hold is gone into only where it is a module."""
        attributes: list[str] = []
        while at < end and (match := _ITEM.search(self.code, at, end)):
            sign = match.group()
            if sign.startswith("#"):
                at = self.attribute(match, place, attributes)
                continue
            at = self.item(match, end, place, attributes)
            attributes = []

    def attribute(self, match: re.Match[str], place: _Place, attributes: list[str]) -> int:
        close = closing(self.code, match.end() - 1)
        text = self.text[match.end() : close].strip()
        if "!" not in match.group():
            attributes.append(text)
        elif not place.parts and not place.unsure:
            self.cfgs.extend(read_attributes([text]).cfgs)
        return close + 1

    def item(self, match: re.Match[str], end: int, place: _Place, attributes: list[str]) -> int:
        """Take one item, and return where the next begins."""
        sign = match.group()
        if sign == "{":
            return self.closes[match.start()] + 1
        if sign in "};":
            return match.end()
        if match["name"]:
            take = self.module if sign[0] == "m" else self.function
            return take(match, end, place, attributes)
        return self.macro(match, place, attributes)

    def module(self, match: re.Match[str], end: int, place: _Place, attributes: list[str]) -> int:
        said = read_attributes(attributes)
        name = match["name"]
        follows = _MODULE_FOLLOWS.match(self.code, match.end(), end)
        if follows is None:
            return match.end()
        cfgs = (*place.cfgs, *said.cfgs)
        unsure = place.unsure or (said.unknown and not said.tests)
        if follows[1] == ";":
            self.modules.append(
                ModuleItem(
                    parts=place.parts,
                    name=name,
                    line=self.line(match.start()),
                    cfgs=cfgs,
                    paths=said.paths,
                    folders=place.folders,
                    unsure=unsure,
                )
            )
            return follows.end()
        opened = follows.end() - 1
        folder = said.paths[-1][1] if said.paths else name.removeprefix("r#")
        inner = _Place((*place.parts, name), (*place.folders, folder), (*cfgs, *self.inner(opened)), unsure)
        self.items(opened + 1, min(end, self.closes[opened]), inner)
        return self.closes[opened] + 1

    def inner(self, opened: int) -> tuple[str, ...]:
        """Conditions that an inline module states within itself."""
        found: list[str] = []
        at = opened + 1
        while match := _INNER.match(self.code, at):
            close = closing(self.code, match.end() - 1)
            found.extend(read_attributes([self.text[match.end() : close]]).cfgs)
            at = close + 1
        return tuple(found)

    def function(self, match: re.Match[str], end: int, place: _Place, attributes: list[str]) -> int:
        body = _BODY.search(self.code, match.end(), end)
        while body and body.group() == ";" and self.within_brackets(match.end(), body.start()):
            body = _BODY.search(self.code, body.end(), end)
        said = read_attributes(attributes)
        close = self.closes[body.start()] if body and body.group() == "{" else body.end() if body else end
        if said.tests or said.unknown:
            signature = self.code[match.end() : body.start()] if body else ""
            more = said.cases is None or has_more_cases(signature)
            cases = None if more else said.cases
            block = (body.end(), close) if body else (end, end)
            self.tests.append(self.test(match, place, said, cases, block))
        return close + 1

    def within_brackets(self, start: int, end: int) -> bool:
        """``fn f(a: [u8; 3])``."""
        return self.code.count("[", start, end) > self.code.count("]", start, end)

    def test(
        self,
        match: re.Match[str],
        place: _Place,
        said: Attributes,
        cases: tuple[str, ...] | None,
        body: tuple[int, int],
    ) -> TestItem:
        maybe = () if not said.tests or "true" in said.tests else (f"any({', '.join(said.tests)})",)
        hollow = "" if said.panics or place.unsure else self.hollow(*body)
        return TestItem(
            parts=(*place.parts, match["name"]),
            line=self.line(match.start()),
            cfgs=(*place.cfgs, *said.cfgs, *maybe),
            ignores=said.ignores,
            cases=cases,
            unsure=place.unsure or said.unknown or not said.tests,
            hollow=hollow,
        )

    def hollow(self, start: int, end: int) -> str:
        if self.code[start:end].isspace() or start >= end:
            return "empty"
        return "true" if _HOLLOW.fullmatch(self.code, start, end) else ""

    def macro(self, match: re.Match[str], place: _Place, attributes: list[str]) -> int:
        opened = match.end()
        if opened >= len(self.code) or self.code[opened] not in "({[":
            return match.end()
        close = closing(self.code, opened)
        if match["rules"]:
            self.rules.append(self.macro_rules(match["rules"], self.code[opened + 1 : close]))
            return close + 1
        before = _LAST_WORD.search(self.code, max(0, match.start() - 100), match.start())
        if before is None:
            return match.end()  # `!(..)`: no macro, but a negation
        said = read_attributes(attributes)
        name, cfgs = before[1], (*place.cfgs, *said.cfgs)
        if name == "include":
            plain = re.fullmatch(r'\s*"([^"]*)"\s*,?\s*', self.text[opened + 1 : close])
            self.modules.append(
                ModuleItem(
                    parts=place.parts,
                    name="",
                    line=self.line(match.start()),
                    cfgs=cfgs,
                    paths=(("true", plain[1] if plain else ""),),
                    unsure=place.unsure,
                )
            )
            return close + 1
        words = set(_WORD.findall(self.code, opened, close))
        self.calls.append(
            MacroCall(
                parts=place.parts,
                name=name,
                line=self.line(match.start()),
                words=frozenset(words) if len(words) <= _MOST_WORDS else None,
                cfgs=cfgs,
                pastes=bool(_PASTED_TEST.search(self.code, opened, close)),
            )
        )
        self.items(opened + 1, close, _Place(place.parts, place.folders, cfgs, True))
        return close + 1

    def macro_rules(self, name: str, body: str) -> MacroRules:
        return MacroRules(
            name=name,
            makes_tests=bool(_RULES_TEST.search(body)),
            functions=tuple(dict.fromkeys(_RULES_FUNCTION.findall(body))),
            calls=tuple(dict.fromkeys(_CALL.findall(body))),
            pastes="[<" in body or "concat_idents" in body,
            modules=len(_RULES_MODULE.findall(body)),
        )
