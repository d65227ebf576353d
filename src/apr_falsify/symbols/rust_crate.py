"""The tests of one target of a package: its modules followed from its first file, as the compiler does.

Rules: the Rust reference, "Modules" (where the file of a module lies, ``#[path]``) and "Macros".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from apr_falsify.symbols.cargo import CargoTarget, Unread
from apr_falsify.symbols.rust_outline import MacroCall, MacroRules, ModuleItem, Outline, TestItem
from apr_falsify.symbols.tree import SourceTree

_MOST_FILES = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RustTest:
    """One test as the runner lists it.

    Attributes:
        path: ``module::tests::name``, without the crate's name; of a case, ``module::tests::name::case``.
        name: of its function.
        file: where it stands, relative to the tree.
        line: in that file.
        cfgs: predicates that must hold for it to be compiled.
        ignores: predicates under any of which it is ignored.
        is_open: it is listed as ``path::case``, once for each of its cases, whose names are not known.
        unsure: whether it is there is not known, only that it may be.
        hollow: as of :class:`TestItem`.

    """

    path: str
    name: str
    file: str
    line: int
    cfgs: tuple[str, ...]
    ignores: tuple[str, ...]
    is_open: bool
    unsure: bool
    hollow: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """A macro that may make tests whose names stand nowhere.

    Attributes:
        module: ``a::b``, the module where it is called; empty for the crate itself.
        why: what it is and where, for a reader.
        words: the names it can give, ``a::b`` where it writes a module too; ``None`` where it can give any.
        cfgs: predicates that must hold for it to be there.

    """

    module: str
    why: str
    words: frozenset[str] | None = None
    cfgs: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Crate:
    """What one target holds.

    Attributes:
        target: of which package's.
        tests: in the order they stand.
        files: every file that it is made of, relative to the tree.
        makers: macros that may make tests of any name.
        documented: names of items whose documentation may hold tests.
        unread: files that could not be read, and circles.

    """

    target: CargoTarget
    tests: list[RustTest] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    makers: list[Maker] = field(default_factory=list)
    documented: set[str] = field(default_factory=set)
    unread: list[Unread] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Here:
    """A file as it is met: the module it is, where its modules' files lie, and what it depends on."""

    file: str
    parts: tuple[str, ...]
    folder: str
    cfgs: tuple[str, ...] = ()
    unsure: bool = False
    around: tuple[str, ...] = ()


def read_crate(tree: SourceTree, target: CargoTarget, rules: Mapping[str, list[MacroRules]]) -> Crate:
    """Follow the modules of one target.

    Args:
        tree: where its files are.
        target: what is built.
        rules: the macros that the tree defines, by name.

    """
    crate = Crate(target=target)
    pending = [_Here(target.root, (), os.path.dirname(target.root))]
    while pending and len(crate.files) < _MOST_FILES:
        here = pending.pop()
        outline = tree.outline(here.file)
        crate.files.add(here.file)
        if outline is None:
            why = "it is too large to be read, or no file" if tree.has(here.file) else "it is not there"
            crate.unread.append(Unread(where=here.file, why=why, stops=False))
            module, said = "::".join(here.parts), f"{here.file} was not read: {why}"
            crate.makers.append(Maker(module=module, why=said, cfgs=here.cfgs))
            continue
        _take(crate, here, outline, rules)
        pending.extend(reversed(list(_below(tree, crate, here, outline))))
    return crate


def _take(crate: Crate, here: _Here, outline: Outline, rules: Mapping[str, list[MacroRules]]) -> None:
    cfgs = (*here.cfgs, *outline.cfgs)
    crate.tests.extend(test for one in outline.tests for test in _listed(here, one, cfgs))
    own = here.parts[-1] if here.parts else ""
    crate.documented |= {name or own for name in outline.documented}
    for call in outline.calls:
        maker = _maker(crate.target, here, call, rules)
        if maker is None:
            continue
        crate.makers.append(maker)
        for word in sorted(maker.words if maker.words is not None else call.words or ()):
            made = TestItem(
                parts=(*call.parts, *word.split("::")), line=call.line, cfgs=call.cfgs, unsure=True
            )
            crate.tests.append(_test(here, made, cfgs))


def _listed(here: _Here, one: TestItem, cfgs: tuple[str, ...]) -> Iterator[RustTest]:
    """A test, or each of its cases."""
    for case in one.cases or ("",):
        yield _test(here, one, cfgs, case)


def _test(here: _Here, one: TestItem, cfgs: tuple[str, ...], case: str = "") -> RustTest:
    return RustTest(
        path="::".join((*here.parts, *one.parts, *((case,) if case else ()))),
        name=one.parts[-1],
        file=here.file,
        line=one.line,
        cfgs=(*cfgs, *one.cfgs),
        ignores=one.ignores,
        is_open=one.cases is None,
        unsure=one.unsure or here.unsure,
        hollow=one.hollow,
    )


# macros of the language and of well-known crates that make no tests
_NO_TESTS = frozenset(
    """
    lazy_static thread_local bitflags println print eprintln vec assert assert_eq assert_ne debug_assert
    const_assert const_assert_eq assert_impl_all assert_not_impl_any assert_eq_size static_assertions
    criterion_group criterion_main include_str include_bytes env option_env concat stringify format
    compile_error cfg matches todo unimplemented unreachable panic write writeln doc_comment pin_project
    proptest cfg_if define_id newtype_index impl_from error_chain quick_error custom_error
    global_asm asm module_path line file column log trace debug info warn error anyhow bail ensure
    json html sql query regex once_cell entity_impl new_key_type slog_o delegate foreign_obj_enum
    embed_migrations uniffi_include_scaffolding include_scaffolding tonic_include_proto include_proto
    fuzz_target libfuzzer_sys afl const_format extern_methods declare_class objc ffi_fn com_interface
    """.split()  # noqa: SIM905 - a table of words reads best as words
)


_MOST_NESTED = 80  # names in a macro that writes a module: any may be in any
_OF_FUNCTIONS = ("quickcheck",)
"""Macros that make a test of each function within them."""


def _maker(
    target: CargoTarget, here: _Here, call: MacroCall, rules: Mapping[str, list[MacroRules]]
) -> Maker | None:
    """What tests a macro may make: none, those of the names it is given, or any."""
    module = "::".join((*here.parts, *call.parts))
    where = f"{here.file}:{call.line}"
    cfgs = (*here.cfgs, *call.cfgs)
    made = _reach(call.name, rules)
    pastes = made.makes_tests and (made.pastes or call.words is None)
    if pastes or (call.pastes and call.name not in rules):
        why = f"the macro {call.name}! at {where} puts the names of tests together"
        return Maker(module=module, why=why, cfgs=cfgs)
    if call.name not in rules:
        if call.name in _NO_TESTS or not _is_of_tests(target, cfgs):
            return None  # what stands in it was read with the file
        if call.name in _OF_FUNCTIONS and call.words is not None:
            return Maker(module=module, why=f"the macro {call.name}! at {where}", words=call.words, cfgs=cfgs)
        why = f"the macro {call.name}! at {where} is of another crate and may make tests"
        return Maker(module=module, why=why, cfgs=cfgs)
    if not made.makes_tests or call.words is None:
        return None
    words = call.words | set(made.functions)
    if made.modules and (made.modules > 1 or len(words) > _MOST_NESTED):
        why = f"the macro {call.name}! at {where} makes modules of tests"
        return Maker(module=module, why=why, cfgs=cfgs)
    if made.modules:
        words |= {f"{one}::{other}" for one in words for other in words}
    return Maker(module=module, why=f"the macro {call.name}! at {where}", words=words, cfgs=cfgs)


def _is_of_tests(target: CargoTarget, cfgs: tuple[str, ...]) -> bool:
    """Whether code is there for tests: in a target of them, or where ``cfg(test)`` holds."""
    return target.kind in ("test", "bench") or any("test" in one for one in cfgs)


def _reach(name: str, rules: Mapping[str, list[MacroRules]]) -> MacroRules:
    """A macro and all that it calls, taken together."""
    pending, seen, tests, pastes, modules = [name], {name}, False, False, 0
    functions: list[str] = []
    while pending:
        for one in rules.get(pending.pop(), ()):
            tests |= one.makes_tests
            pastes |= one.pastes
            modules += one.modules
            functions += one.functions
            fresh = [call for call in one.calls if call not in seen]
            seen.update(fresh)
            pending += fresh
            pastes |= any(call == "paste" for call in fresh)
    return MacroRules(
        name=name,
        makes_tests=tests,
        functions=tuple(functions),
        calls=(),
        pastes=pastes,
        modules=modules,
    )


def _below(tree: SourceTree, crate: Crate, here: _Here, outline: Outline) -> Iterator[_Here]:
    cfgs = (*here.cfgs, *outline.cfgs)
    for one in outline.modules:
        parts = (*here.parts, *one.parts, *((one.name,) if one.name else ()))
        said = (*cfgs, *one.cfgs)
        places = list(_places(tree, here, one))
        if not places and (one.name or one.paths):
            _tell_missing(crate, here, one, parts, said)
        for file, folder, when in places:
            if file in here.around or file == here.file:
                why = f"its module {one.name or 'include!'} leads back to {file}, which holds it: a circle"
                crate.unread.append(Unread(where=f"{here.file}:{one.line}", why=why))
                continue
            extra = () if when == "true" else (when,)
            unsure = here.unsure or one.unsure
            yield _Here(file, parts, folder, (*said, *extra), unsure, (*here.around, here.file))


def _tell_missing(
    crate: Crate, here: _Here, one: ModuleItem, parts: tuple[str, ...], cfgs: tuple[str, ...]
) -> None:
    """A module without a file: where a build script writes it, or a macro hides it, any test may be in it."""
    what = f"mod {one.name};" if one.name else "include!"
    why = f"the file of `{what}` at {here.file}:{one.line} is not in the tree"
    crate.makers.append(Maker(module="::".join(parts), why=why, cfgs=cfgs))


def _places(tree: SourceTree, here: _Here, one: ModuleItem) -> Iterator[tuple[str, str, str]]:
    """Files that a module may be, with the folder of its own modules, and under which condition."""
    beside = os.path.dirname(here.file)
    if not one.name:
        for _, name in one.paths:
            file = _joined(beside, name)
            if name and tree.has(file):
                yield file, os.path.dirname(file), "true"
        return
    for when, name in one.paths:
        base = os.path.join(here.folder, *one.folders) if one.folders else beside
        file = _joined(base, name)
        if tree.has(file):
            yield file, os.path.dirname(file), when
    if any(when == "true" for when, _ in one.paths):
        return
    name = one.name.removeprefix("r#")
    folder = _joined(here.folder, *one.folders)
    for file in (f"{name}.rs", f"{name}/mod.rs"):
        whole = _joined(folder, file)
        if tree.has(whole):
            yield whole, _joined(folder, name), "true"
            return


def _joined(*parts: str) -> str:
    return os.path.normpath(os.path.join(*parts)).replace(os.sep, "/").removeprefix("./")
