"""The fixtures that a test asks for by the names of its parameters, found as pytest finds them.

Rules: pytest's documentation, "Fixture availability": the test's own module, then every ``conftest.py`` from
its folder up to the root, then plugins.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from apr_falsify.symbols.collect import PytestSettings, read_settings
from apr_falsify.symbols.modules import Function, Import, Module, Modules, plugins_of

CONFTEST = "conftest.py"


class Fixtures:
    """The fixtures of one project."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._settings = read_settings(modules.tree.root) or PytestSettings()
        self._plugins = tuple(self._plugin_files(plugins_of(modules.tree.root)))
        self._places: dict[str, tuple[Module, ...]] = {}

    @property
    def test_files(self) -> tuple[str, ...]:
        """Patterns of the files that pytest collects."""
        return self._settings.files

    def of(self, module: Module, parameters: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Return the units that pytest runs with what ``module`` defines.

        Args:
            module: a file that pytest collects; of others nothing is returned.
            parameters: names of a definition's parameters, which may be fixtures.

        """
        if not self._is_of_pytest(module.path):
            return
        wanted = set(parameters)
        for place in self._places_of(module):
            hooks = "pytest_" if Path(place.path).name == CONFTEST else None
            for fixture, nodes in place.definitions.items():
                names, automatic = _fixture(fixture, nodes)
                marks = fixture == "pytestmark" and place is module
                hook = hooks is not None and fixture.startswith(hooks)
                if automatic or marks or hook or names & wanted:
                    yield place.path, fixture

    def _is_of_pytest(self, path: str) -> bool:
        file = Path(path).name
        is_test = any(fnmatch(file, pattern) for pattern in self._settings.files)
        return is_test or file == CONFTEST or path in self._plugins

    def _places_of(self, module: Module) -> tuple[Module, ...]:
        if module.path not in self._places:
            self._places[module.path] = tuple(self._found(module))
        return self._places[module.path]

    def _found(self, module: Module) -> Iterator[Module]:
        yield module
        folder = Path(module.path).parent
        files = [(one / CONFTEST).as_posix() for one in (folder, *folder.parents)]
        for file in dict.fromkeys((*files, *self._plugins)):
            found = self._modules.module(file) if file != module.path else ""
            if isinstance(found, Module):
                yield found

    def _plugin_files(self, dotted: Iterable[str]) -> Iterator[str]:
        for one in dotted:
            place = self._modules.locate(Import(base=None, parts=tuple(one.split("."))), "")
            if place is None:
                continue
            yield place[0]
            module = self._modules.module(place[0])
            for passed_on in module.imports.values() if isinstance(module, Module) else ():
                inner = self._modules.locate(passed_on, place[0])
                if inner is not None:
                    yield inner[0]


def _fixture(name: str, nodes: list[ast.stmt]) -> tuple[set[str], bool]:
    """Return the names that a definition is asked for by as a fixture, and whether it is used unasked."""
    names: set[str] = set()
    automatic = False
    for node in nodes:
        for decorator in node.decorator_list if isinstance(node, Function) else ():
            call = decorator.func if isinstance(decorator, ast.Call) else decorator
            if not ast.unparse(call).endswith("fixture"):
                continue
            given = decorator.keywords if isinstance(decorator, ast.Call) else []
            options = {one.arg: one.value for one in given}
            known_by = options.get("name")
            names.add(str(known_by.value) if isinstance(known_by, ast.Constant) else name)
            use = options.get("autouse")
            automatic |= isinstance(use, ast.Constant) and bool(use.value)
    return names, automatic
