"""The fixtures that a test asks for by the names of its parameters, found as pytest finds them.

Rules: pytest's documentation, "Fixture availability": the test's own module, then every ``conftest.py`` from
its folder up to the root, then plugins.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from apr_falsify.symbols.collect import PytestSettings, read_settings
from apr_falsify.symbols.modules import MODULE, Function, Import, Module, Modules, plugins_of

CONFTEST = "conftest.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """What pytest finds in a module.

    Attributes:
        unit: the file that defines it, and its name there.
        known_as: its name in the module, which an import may have changed.
        names: the names by which tests request it.
        automatic: whether it is a fixture that is used unasked.

    """

    unit: tuple[str, str]
    known_as: str
    names: frozenset[str]
    automatic: bool


class Fixtures:
    """The fixtures of one project."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._settings = read_settings(modules.tree.root) or PytestSettings()
        self._plugins = tuple(self._plugin_files(plugins_of(modules.tree.root)))
        self._places: dict[str, tuple[Module, ...]] = {}
        self._with_fixtures: dict[str, bool] = {}
        self._offered: dict[str, tuple[_Offer, ...]] = {}

    @property
    def test_files(self) -> tuple[str, ...]:
        """Patterns of the files that pytest collects."""
        return self._settings.files

    def of(self, module: Module, parameters: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Return the units that pytest runs with what ``module`` defines.

        Args:
            module: a file that pytest collects, or one with fixtures; of others nothing is returned.
            parameters: names of a definition's parameters, which may be fixtures.

        """
        if not self._is_of_pytest(module):
            return
        wanted = {*parameters, *self._settings.fixtures}
        for place in self._places_of(module):
            is_other = place is not module
            if is_other and (place.rest or place.imported):
                yield place.path, MODULE
            hooks = _is_conftest(place) or (is_other and place.path not in self._plugins)
            for one in self._offers(place):
                marks = one.known_as == "pytestmark" and not is_other
                hook = hooks and one.known_as.startswith("pytest_")
                if one.automatic or marks or hook or one.names & wanted:
                    yield one.unit

    def _is_of_pytest(self, module: Module) -> bool:
        file = Path(module.path).name
        is_test = any(fnmatch(file, pattern) for pattern in self._settings.files)
        return is_test or _is_conftest(module) or module.path in self._plugins or self._has_fixtures(module)

    def _has_fixtures(self, module: Module) -> bool:
        if module.path not in self._with_fixtures:
            names = (_offer(name, module, name).names for name in module.definitions)
            self._with_fixtures[module.path] = "pytest" in module.imports and any(names)
        return self._with_fixtures[module.path]

    def _offers(self, place: Module) -> tuple[_Offer, ...]:
        if place.path not in self._offered:
            self._offered[place.path] = tuple(
                _offer(known_as, origin, name) for known_as, origin, name in self._visible(place)
            )
        return self._offered[place.path]

    def _visible(self, place: Module) -> Iterator[tuple[str, Module, str]]:
        """Yield what a module defines or imports from the project: known as, defined in, defined as."""
        yield from ((name, place, name) for name in place.definitions)
        for name in place.imports:
            origin = self._origin(place, name)
            if origin is not None:
                yield name, *origin
        for star in place.stars:
            found = self._modules.locate(star, place.path)
            other = None if found is None else self._modules.module(found[0])
            if isinstance(other, Module):
                yield from ((name, other, name) for name in other.definitions)

    def _origin(self, module: Module, name: str, steps: int = 8) -> tuple[Module, str] | None:
        """Return where an imported name is defined, through some re-exports."""
        if name in module.definitions:
            return module, name
        one = module.imports.get(name)
        found = None if one is None or not steps else self._modules.locate(one, module.path)
        other = None if found is None else self._modules.module(found[0])
        if found is None or not isinstance(other, Module) or len(found[1]) != 1:
            return None
        return self._origin(other, found[1][0], steps - 1)

    def _places_of(self, module: Module) -> tuple[Module, ...]:
        if module.path not in self._places:
            self._places[module.path] = tuple(self._found(module))
        return self._places[module.path]

    def _found(self, module: Module) -> Iterator[Module]:
        folder = Path(module.path).parent
        conftests = [(one / CONFTEST).as_posix() for one in (folder, *folder.parents)]
        pending, seen = [module.path, *conftests, *self._plugins], set()
        while pending:
            file = pending.pop(0)
            found = self._modules.module(file) if file not in seen else ""
            seen.add(file)
            if isinstance(found, Module):
                yield found
                named = found.definitions.get("pytest_plugins", ()) if found.path not in self._plugins else ()
                pending += [path for path, _ in self._files_of(_texts_in(named), file)]

    def _plugin_files(self, dotted: Iterable[str]) -> Iterator[str]:
        for path, module in self._files_of(dotted, ""):
            yield path
            for passed_on in module.imports.values():
                inner = self._modules.locate(passed_on, path)
                if inner is not None:
                    yield inner[0]

    def _files_of(self, dotted: Iterable[str], start: str) -> Iterator[tuple[str, Module]]:
        """Yield the project's files among the modules that are named; ``start`` is where they are named."""
        for one in dotted:
            place = self._modules.locate(Import(base=None, parts=tuple(one.split("."))), start)
            module = None if place is None else self._modules.module(place[0])
            if place is not None and isinstance(module, Module):
                yield place[0], module


def _is_conftest(module: Module) -> bool:
    return Path(module.path).name == CONFTEST


def _texts_in(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        found = (one.value for one in ast.walk(node) if isinstance(one, ast.Constant))
        yield from (one for one in found if isinstance(one, str))


def _offer(known_as: str, origin: Module, name: str) -> _Offer:
    """Read a definition's decorators; ``known_as`` is its name where pytest finds it."""
    names: set[str] = set()
    automatic = False
    for node in origin.definitions[name]:
        for decorator in node.decorator_list if isinstance(node, Function) else ():
            call = decorator.func if isinstance(decorator, ast.Call) else decorator
            if not ast.unparse(call).endswith("fixture"):
                continue
            given = decorator.keywords if isinstance(decorator, ast.Call) else []
            options = {one.arg: one.value for one in given}
            known_by = options.get("name")
            names.add(str(known_by.value) if isinstance(known_by, ast.Constant) else known_as)
            use = options.get("autouse")
            automatic |= isinstance(use, ast.Constant) and bool(use.value)
    return _Offer(unit=(origin.path, name), known_as=known_as, names=frozenset(names), automatic=automatic)
