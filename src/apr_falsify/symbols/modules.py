"""The modules of one project, read and never imported: what each defines, imports, and does when imported."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_falsify.reading import read_toml, table
from apr_falsify.symbols.collect import read_settings
from apr_falsify.symbols.tree import SourceTree

MODULE = "<module>"
"""In place of a name: what runs when a module is imported."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """What a name that was imported stands for.

    Attributes:
        base: the folder that a relative import starts from, relative to the project; ``None`` where it is
            absolute.
        parts: the dotted name: a module, or a module and what is taken from it.

    """

    base: str | None
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return ("" if self.base is None else f"{self.base}/") + ".".join(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One file.

    Attributes:
        path: relative to the project.
        definitions: name -> the top-level statements that bind it: a function, a class, an assignment, or
            a whole ``if`` or ``try`` within which it is bound.
        imports: name -> what it stands for.
        stars: the modules of which everything is imported.
        imported: what is imported when it is imported, each with the dotted name that its use begins with.
        rest: the other statements that run when it is imported.
        reads_strings: whether it reads ``__doc__``, so that its docstrings are data.

    """

    path: str
    definitions: Mapping[str, list[ast.stmt]]
    imports: Mapping[str, Import]
    stars: tuple[Import, ...]
    imported: tuple[tuple[tuple[str, ...], Import], ...]
    rest: tuple[ast.stmt, ...]
    reads_strings: bool

    @property
    def folder(self) -> str:
        """The folder it lies in."""
        return os.path.dirname(self.path)


@dataclass(slots=True, kw_only=True)
class _Reading:
    """A module while it is read."""

    folder: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, Import] = field(default_factory=dict)
    stars: list[Import] = field(default_factory=list)
    imported: list[tuple[tuple[str, ...], Import]] = field(default_factory=list)
    rest: list[ast.stmt] = field(default_factory=list)


def read_module(path: str, source: bytes) -> Module:
    """Read one file.

    Raises:
        SyntaxError, ValueError, RecursionError: it does not parse.

    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    reading = _Reading(folder=os.path.dirname(path))
    for statement in tree.body:
        _take(reading, statement)
    return Module(
        path=path,
        definitions=reading.definitions,
        imports=reading.imports,
        stars=tuple(reading.stars),
        imported=tuple(reading.imported),
        rest=tuple(reading.rest),
        reads_strings=b"__doc__" in source,
    )


def _take(reading: _Reading, statement: ast.stmt) -> None:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        _take_imports(reading, statement, runs=True)
        return
    runs = not _does_nothing(statement)
    for inner in _statements_within(statement):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            _take_imports(reading, inner, runs=runs)
    names = list(dict.fromkeys(_bound_names(statement)))
    for name in names:
        reading.definitions.setdefault(name, []).append(statement)
    if runs and (not names or isinstance(statement, _COMPOUND)):
        reading.rest.append(statement)  # whatever names it binds, it may do more than that


def _take_imports(reading: _Reading, node: ast.Import | ast.ImportFrom, *, runs: bool) -> None:
    for name, found in imports_of(node, reading.folder):
        if name == "*":
            reading.stars.append(found)
        else:
            reading.imports[name] = found
        if runs:
            reading.imported.append(((name,), found))
    if runs and isinstance(node, ast.Import):  # `import a.b` binds a, and runs a.b
        dotted = [tuple(one.name.split(".")) for one in node.names if not one.asname and "." in one.name]
        reading.imported += [(one, Import(base=None, parts=one)) for one in dotted]


def imports_of(node: ast.Import | ast.ImportFrom, folder: str) -> Iterator[tuple[str, Import]]:
    """Return the names that an import of a module in ``folder`` binds, ``*`` for everything."""
    if isinstance(node, ast.Import):
        for one in node.names:
            parts = tuple(one.name.split("."))
            bound = one.asname or parts[0]
            yield bound, Import(base=None, parts=parts if one.asname else parts[:1])
        return
    base: str | None = None
    if node.level:
        base = os.path.normpath(os.path.join(folder, *[os.pardir] * (node.level - 1)))
    head = tuple(node.module.split(".")) if node.module else ()
    for one in node.names:
        if one.name == "*":
            yield "*", Import(base=base, parts=head)
        else:
            yield one.asname or one.name, Import(base=base, parts=(*head, one.name))


_COMPOUND = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.TryStar, ast.Match)
_BLOCKS = ("body", "orelse", "finalbody")


def _statements_within(statement: ast.stmt) -> Iterator[ast.stmt]:
    """The statements that run at module level within an ``if``, ``try``, ``for`` or ``with``."""
    if isinstance(statement, Function | ast.ClassDef):
        return
    holders = [statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ())]
    for holder in holders:
        for block in _BLOCKS:
            for inner in getattr(holder, block, ()):
                yield inner
                yield from _statements_within(inner)


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, Function | ast.ClassDef):
        yield statement.name
        return
    for node in (statement, *_statements_within(statement)):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
            continue
        for target in _targets(node):
            yield from (one.id for one in ast.walk(target) if _is_stored(one))  # type: ignore[attr-defined]  # a stored node is a Name
        for case in getattr(node, "cases", ()):
            captured = (getattr(one, "name", None) for one in ast.walk(case.pattern))
            yield from (name for name in captured if isinstance(name, str))


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    if isinstance(node, ast.With | ast.AsyncWith):
        return [item.optional_vars for item in node.items if item.optional_vars is not None]
    if isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For | ast.AsyncFor):
        return [node.target]
    if type(node).__name__ == "TypeAlias":  # Python 3.12's `type X = ...`
        return [node.name]  # type: ignore[attr-defined]  # not known to 3.11
    return []


_NOT_RUN = ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")
"""Conditions that do not hold where a module is imported."""


def _does_nothing(statement: ast.stmt) -> bool:
    """A lone string, ``pass``, imports for types alone, or what runs only as a program."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.If) and not statement.orelse:
        return ast.unparse(statement.test) in _NOT_RUN
    return isinstance(statement, ast.Pass)


class Modules:
    """The modules of one project, each read once.

    Args:
        root: the project: the folder of its pyproject.toml.

    """

    def __init__(self, root: Path) -> None:
        self.tree = SourceTree(root)
        self.roots = _import_roots(self.tree.root)
        self._modules: dict[str, Module | str] = {}

    def module(self, path: str) -> Module | str:
        """Return the module of a file, or why there is none."""
        if path not in self._modules:
            self._modules[path] = self._read(path)
        return self._modules[path]

    def _read(self, path: str) -> Module | str:
        source = self.tree.read_bytes(path)
        if source is None:
            return "its file is not in the project"
        try:
            return read_module(path, source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"its file does not parse: {error}"

    def locate(self, found: Import, start: str) -> tuple[str, tuple[str, ...]] | None:
        """Return the file that an import leads to and what is left of its name; ``None`` for another's.

        Args:
            found: the import.
            start: the file that it stands in: pytest puts the folder around its package on ``sys.path``.

        """
        if found.base is not None:
            own = os.path.normpath(os.path.join(found.base, "__init__.py"))
            return self._walk(found.base, found.parts) or ((own, found.parts) if self._is_file(own) else None)
        for base in dict.fromkeys((*self.roots, self._around(start))):
            place = self._walk(base, found.parts)
            if place is not None:
                return place
        return None

    def _around(self, path: str) -> str:
        folder = os.path.dirname(path)
        while folder and self._is_file(os.path.join(folder, "__init__.py")):
            folder = os.path.dirname(folder)
        return folder

    def _walk(self, base: str, parts: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
        best: tuple[str, tuple[str, ...]] | None = None
        folder = base
        for count, part in enumerate(parts, 1):
            module, package = os.path.join(folder, f"{part}.py"), os.path.join(folder, part, "__init__.py")
            if self._is_file(package):
                best = os.path.normpath(package), parts[count:]
            elif self._is_file(module):
                return os.path.normpath(module), parts[count:]
            folder = os.path.join(folder, part)
        return best

    def _is_file(self, relative: str) -> bool:
        path = self.tree.locate(relative)
        return path is not None and path.is_file()

    def packages_of(self, path: str) -> Iterator[str]:
        """Return the ``__init__.py`` files that run before a module does, the outermost first."""
        folders = Path(path).parent.parts
        for count in range(1, len(folders) + 1):
            package = "/".join((*folders[:count], "__init__.py"))
            if package != path and self._is_file(package):
                yield package


def _import_roots(root: Path) -> tuple[str, ...]:
    """Where the project's own modules are imported from, relative to it."""
    settings = read_settings(root)
    named = [] if settings is None else list(settings.pythonpath)
    project = _pyproject(root)
    wheel = table(project, "tool", "hatch", "build", "targets", "wheel")
    named += [os.path.dirname(one) for one in _texts(wheel.get("packages"))]
    named += _texts(table(project, "tool", "setuptools", "packages", "find").get("where"))
    folders = [os.path.normpath(one) for one in [*named, "src", "."] if (root / one).is_dir()]
    return tuple(dict.fromkeys("" if one == "." else one for one in folders if not one.startswith("..")))


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _pyproject(root: Path) -> dict[str, Any]:
    try:
        return read_toml(root / "pyproject.toml")
    except (OSError, ValueError):
        return {}


def plugins_of(root: Path) -> tuple[str, ...]:
    """Return the dotted modules of the pytest plugins that the project itself provides."""
    plugins = table(_pyproject(root), "project", "entry-points", "pytest11")
    return tuple(str(one).partition(":")[0] for one in plugins.values())
