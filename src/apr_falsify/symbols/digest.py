"""Digests of functions and of all the first-party code they use: what evidence is bound to.

The unit is what a module defines at its top level: a function with those nested in it, a class with its
methods, a constant. A method may be reached through any object, so a class counts as a whole. From a unit
every name it reads is followed: to definitions of its module, through imports (relative ones, lazy ones
within functions, re-exports, ``module.attribute``), to fixtures where it is a test. A module that is handed
about as a value counts with all that it defines. With a unit count the statements that run when its module,
the packages around that, and what these import in turn, are imported (``path::<module>``); with those what
a decorator of the project gets hold of, and all of a module that is imported and never named. What other
packages define is not followed, but which of them a name comes from is part of the digest.

Names are followed without regard to local variables that hide them: too much may be bound, not too little.
What cannot be followed by reading is reported, under the unit that does it: modules imported by a name
that only a run shows, other programs, ``eval``, ``exec``, ``globals()``. Data files are not bound.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from apr_falsify.symbols.canonical import digest_of
from apr_falsify.symbols.fixtures import Fixtures
from apr_falsify.symbols.modules import MODULE, Function, Import, Module, Modules
from apr_falsify.symbols.uses import Chain, Uses, chain_of, uses_of

_TOLD = {
    "subprocess": "starts other programs, whose code is not followed",
    "runpy": "runs files by their names",
}
"""Module of the standard library -> what using it hides from a reader."""

Unit = tuple[str, str]
"""A file, relative to the project, and what it defines at its top level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digested:
    """One unit.

    Attributes:
        digest: of its own canonical text, without what it uses.
        uses: the first-party units that it uses.
        told: what about it cannot be followed.
        is_empty: whether it is a module that only imports others.

    """

    digest: str
    uses: tuple[Unit, ...]
    told: tuple[str, ...] = ()
    is_empty: bool = False


@dataclass(slots=True)
class _Followed:
    """Where the names of a unit lead."""

    units: set[Unit] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)


class Project:
    """The code of one project; what was read once is stored.

    Args:
        root: the project: the folder of its pyproject.toml.

    """

    def __init__(self, root: Path) -> None:
        self.modules = Modules(root)
        self.fixtures = Fixtures(self.modules)
        self._units: dict[Unit, Digested] = {}

    def defines(self, path: str, name: str) -> bool:
        """Whether a file of the project defines a qualified name, or passes it on."""
        return not isinstance(_named(self, path, name.replace("::", "."), {}), str)

    def unit(self, unit: Unit) -> Digested:
        """Return one unit of a module that parses and defines it."""
        if unit not in self._units:
            self._units[unit] = self._digested(unit)
        return self._units[unit]

    def _digested(self, unit: Unit) -> Digested:
        path, name = unit
        module = self.modules.module(path)
        assert isinstance(module, Module)
        nodes = list(module.rest) if name == MODULE else module.definitions[name]
        uses = uses_of(nodes, module.folder)
        found = _Followed(units=set(self._surroundings(path)), told=set(uses.dynamic))
        for chain in uses.chains:
            self._follow(module, chain, uses, found)
        for dotted in uses.modules:
            self._enter(Import(base=None, parts=tuple(dotted.split("."))), (), module, found)
        found.units.update(self.fixtures.of(module, uses.parameters))
        if name == MODULE:
            found.units.update(self._run_by_imports(module))
            found.units.update((path, one) for one in module.definitions if self._is_registered(module, one))
        found.units.discard(unit)
        return Digested(
            digest=digest_of(nodes, found.foreign, strings=module.reads_strings),
            uses=tuple(sorted(found.units)),
            told=tuple(sorted(found.told)),
            is_empty=not nodes,
        )

    def _surroundings(self, path: str) -> Iterator[Unit]:
        """What runs before a unit of ``path`` can be used."""
        for file in (path, *self.modules.packages_of(path)):
            module = self.modules.module(file)
            if isinstance(module, Module) and (module.rest or module.imported):
                yield file, MODULE

    def _run_by_imports(self, module: Module) -> Iterator[Unit]:
        """What runs when ``module`` imports others; one that it imports and never names counts as a whole."""
        whole: list[tuple[Chain, Module]] = []
        for used_as, one in module.imported:
            place = self.modules.locate(one, module.path)
            other = None if place is None else self.modules.module(place[0])
            if place is not None and isinstance(other, Module):
                yield from self._surroundings(place[0])
                whole += [] if place[1] or used_as == ("*",) else [(used_as, other)]
        if whole and Path(module.path).name != "__init__.py":  # that passes on what it does not use itself
            everything = [node for nodes in module.definitions.values() for node in nodes]
            chains = uses_of([*everything, *module.rest], module.folder).chains
            for used_as, other in whole:
                if not any(_begin_alike(used_as, chain) for chain in chains):
                    yield from ((other.path, name) for name in other.definitions)

    def _is_registered(self, module: Module, name: str) -> bool:
        """Whether a decorator of this project gets hold of a definition when its module is imported."""
        for node in module.definitions[name]:
            for decorator in getattr(node, "decorator_list", ()):
                chain = chain_of(decorator.func if isinstance(decorator, ast.Call) else decorator) or ("",)
                if chain[0] in module.definitions:
                    return True
                one = module.imports.get(chain[0])
                if one is not None and self.modules.locate(one, module.path) is not None:
                    return True
        return False

    def _follow(self, module: Module, chain: Chain, uses: Uses, found: _Followed) -> None:
        name, *rest = chain
        if name in module.definitions:
            found.units.add((module.path, name))
        imports = [*uses.imports.get(name, ())]
        imports += [module.imports[name]] if name in module.imports else []
        for one in imports:
            self._enter(one, tuple(rest), module, found, name)
        if not imports and name not in module.definitions:
            self._from_stars(module, name, found)

    def _from_stars(self, module: Module, name: str, found: _Followed) -> None:
        for star in module.stars:
            place = self.modules.locate(star, module.path)
            if place is None:
                found.foreign.add(f"*={star}")
                continue
            other = self.modules.module(place[0])
            if isinstance(other, Module) and (name in other.definitions or name in other.imports):
                self._take(other, (name,), found, frozenset())

    def _enter(self, one: Import, rest: Chain, module: Module, found: _Followed, known_by: str = "") -> None:
        place = self.modules.locate(one, module.path)
        if place is None:
            found.foreign.add(f"{known_by or one}={one}")
            found.told.update(_TOLD[top] for top in one.parts[:1] if top in _TOLD)
            return
        # an import of a package binds its top; what is taken of it may be a module further down
        path, left = (
            self.modules.locate(Import(base=one.base, parts=(*one.parts, *rest)), module.path) or place
        )
        other = self.modules.module(path)
        if isinstance(other, str):
            found.told.add(f"uses {path}: {other}")
        elif left:
            self._take(other, left, found, frozenset())
        else:
            found.units.update((path, name) for name in other.definitions)
            found.units.update(self._surroundings(path))

    def _take(self, module: Module, chain: Chain, found: _Followed, seen: frozenset[Unit]) -> None:
        """Add what ``module.chain`` stands for, through re-exports."""
        name, rest = chain[0], chain[1:]
        here = (module.path, name)
        if here in seen:
            return
        known = name in module.definitions
        if known:
            found.units.add(here)
        if name in module.imports:
            found.units.update(self._surroundings(module.path))
            self._through(module, module.imports[name], rest, found, seen | {here})
        elif not known and not self._starred(module, chain, found, seen | {here}):
            if "__getattr__" in module.definitions:
                found.units.add((module.path, "__getattr__"))
            elif not (name.startswith("__") and name.endswith("__")):
                found.told.add(f"uses {name} of {module.path}, which does not define it")

    def _through(
        self, module: Module, one: Import, rest: Chain, found: _Followed, seen: frozenset[Unit]
    ) -> None:
        place = self.modules.locate(Import(base=one.base, parts=(*one.parts, *rest)), module.path)
        if place is None:
            found.foreign.add(f"{module.path}:{one}={one}")
            return
        other = self.modules.module(place[0])
        if isinstance(other, str):
            found.told.add(f"uses {place[0]}: {other}")
        elif place[1]:
            self._take(other, place[1], found, seen)
        else:
            found.units.update((place[0], name) for name in other.definitions)

    def _starred(self, module: Module, chain: Chain, found: _Followed, seen: frozenset[Unit]) -> bool:
        for star in module.stars:
            place = self.modules.locate(star, module.path)
            other = None if place is None else self.modules.module(place[0])
            if isinstance(other, Module) and (chain[0] in other.definitions or chain[0] in other.imports):
                self._take(other, chain, found, seen)
                return True
        return False


def bind(
    root: Path, names: Iterable[tuple[str, str]], project: Project | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the digests of functions, classes and constants, and of all first-party code that they use.

    Args:
        root: the project.
        names: file, relative to ``root``, and qualified name (``Class.method``, ``outer.inner``; ``::``
            is taken for a dot); an empty name for all that the file defines.
        project: what was read of ``root`` before, to spare reading it again.

    Returns:
        ``path::qualified.name`` -> digest of its own canonical text, in order of names; and what could not
        be bound -> why.

    """
    project = project or Project(root)
    functions: dict[str, str] = {}
    unbound: dict[str, str] = {}
    waiting: list[Unit] = []
    for path, name in names:
        qualified = name.replace("::", ".")
        found = _named(project, path, qualified, functions)
        if isinstance(found, str):
            unbound[f"{path}::{qualified}" if qualified else path] = found
        else:
            waiting += found
    for unit, digested in _reached(project, waiting):
        key = "::".join(unit)
        if not digested.is_empty:
            functions[key] = digested.digest
        if digested.told:
            unbound[key] = "; ".join(digested.told)
    return dict(sorted(functions.items())), dict(sorted(unbound.items()))


def _named(project: Project, path: str, qualified: str, functions: dict[str, str]) -> list[Unit] | str:
    """Return the units that a name stands for, what is nested in them added to ``functions``; or why not."""
    if not path.endswith((".py", ".pyi")):
        return "is no Python; only that is bound"
    module = project.modules.module(path)
    if isinstance(module, str):
        return module
    if not qualified:
        return [(path, name) for name in module.definitions] or "it defines nothing"
    top, *inner = qualified.split(".")
    if top not in module.definitions:
        return _imported(project, module, qualified)
    nested = _nested(module.definitions[top], inner)
    if not nested:
        return "its class or function does not define it"
    if inner:
        functions[f"{path}::{qualified}"] = digest_of(nested, strings=module.reads_strings)
    return [(path, top)]


def _imported(project: Project, module: Module, qualified: str) -> list[Unit] | str:
    """A name that a file only passes on."""
    found = _Followed()
    project._take(module, tuple(qualified.split(".")), found, frozenset())
    return sorted(found.units) if found.units and not found.told else "its file does not define it"


def _nested(nodes: list[ast.stmt], inner: list[str]) -> list[ast.stmt]:
    """Return what defines a nested name; of an attribute or an inherited method, the class itself."""
    for name in inner:
        found = [node for one in nodes for node in _inside(one) if _defines(node, name)]
        if not found:
            return nodes if any(_may_have(one, name) for one in nodes) else []
        nodes = found
    return nodes


def _inside(node: ast.stmt) -> Iterator[ast.stmt]:
    for block in ("body", "orelse", "finalbody"):
        for one in getattr(node, block, ()):
            yield one
            if not isinstance(one, Function | ast.ClassDef):
                yield from _inside(one)


def _defines(node: ast.stmt, name: str) -> bool:
    if isinstance(node, Function | ast.ClassDef):
        return node.name == name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(one, ast.Name) and one.id == name for one in targets)


def _may_have(node: ast.stmt, name: str) -> bool:
    """Whether a class has a base to inherit a name from, or sets it on its objects."""
    if not isinstance(node, ast.ClassDef):
        return False
    stored = (one for one in ast.walk(node) if isinstance(one, ast.Attribute) and one.attr == name)
    return bool(node.bases) or any(isinstance(one.ctx, ast.Store) for one in stored)


def _begin_alike(first: Chain, second: Chain) -> bool:
    return all(one == other for one, other in zip(first, second, strict=False))


def _reached(project: Project, first: Iterable[Unit]) -> Iterator[tuple[Unit, Digested]]:
    waiting, seen = list(first), set(first)
    while waiting:
        unit = waiting.pop()
        digested = project.unit(unit)
        yield unit, digested
        fresh = set(digested.uses) - seen
        seen |= fresh
        waiting += fresh
