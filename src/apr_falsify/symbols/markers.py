"""Which tests carry a pytest marker, found by reading the files: nothing is imported, nothing runs.

Rules: pytest's documentation, "How to mark test functions with attributes" and "Working with custom markers":
a marker stands on a function, on a class around it, in ``pytestmark`` of a class or module, or on a
``pytest.param`` of a function's parameters.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from fnmatch import fnmatch

from apr_falsify.symbols.collect import (
    SETTINGS_FILES,
    PytestSettings,
    is_file_collected,
    read_settings,
    why_not_collected,
)
from apr_falsify.symbols.index import SymbolIndex
from apr_falsify.symbols.states import quickly_pickled
from apr_falsify.symbols.tree import SourceTree

_PYTEST = re.compile(r"(?:^|[\s`])(?:py\.test|pytest)\s(?P<rest>[^\n]*)")
_OPTION = re.compile(r"""(?:^|\s)-m[\s=]*(?:'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<bare>[\w.-]+))""")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedTest:
    """One test that carries a marker.

    Attributes:
        path: its file, relative to the tree, with forward slashes.
        parts: the classes it is in, outermost first, and its name.
        line: where it stands.
        why_not: why pytest would not collect it; empty where it would.
        skipped: whether it is skipped always.

    """

    path: str
    parts: tuple[str, ...]
    line: int
    why_not: str = ""
    skipped: bool = False

    @property
    def node(self) -> str:
        """Pytest's node id."""
        return "::".join((self.path, *self.parts))


def selected_markers(text: str) -> tuple[str, ...]:
    """Return what ``pytest -m ...`` selects in a text, once each: a marker's name, or an expression as it is.

    An expression (``a and not b``) is no name; :func:`is_marker` tells them apart.
    """
    found = []
    for command in _PYTEST.finditer(text.replace("\\\n", " ")):
        for option in _OPTION.finditer(command["rest"]):
            found.append((option["single"] or option["double"] or option["bare"] or "").strip())
    return tuple(dict.fromkeys(one for one in found if one))


def is_marker(text: str) -> bool:
    """Whether ``text`` is the name of one marker, and no expression over several."""
    return text.isidentifier() and text not in ("and", "or", "not")


def marked_tests(tree: SourceTree, marker: str) -> tuple[MarkedTest, ...]:
    """Return every test of ``tree`` that carries ``marker``, under the paths that its pytest settings name.

    Tests that pytest would not collect are returned too, each with the reason.
    """
    return by_marker(tree, (marker,))[marker]


def by_marker(
    tree: SourceTree, markers: Iterable[str], kept: Kept | None = None
) -> dict[str, tuple[MarkedTest, ...]]:
    """Return the tests of each marker, as :func:`marked_tests` does; every file is read once.

    ``kept`` holds what was found before in files of the same content, and takes what is found now.
    """
    tree.touched.update(SETTINGS_FILES)
    settings = read_settings(tree.root) or PytestSettings()
    found: dict[str, list[MarkedTest]] = {marker: [] for marker in markers}
    words = re.compile(
        rb"\b(?:%s)\b" % b"|".join(re.escape(one.encode()) for one in found) if found else rb"(?!)"
    )
    for file in tree.files():
        if file.endswith(".py") and _is_under(file, settings.paths) and is_file_collected(file, settings):
            source = tree.read_bytes(file) or b""
            named = tuple(dict.fromkeys(one.decode() for one in words.findall(source)))
            for marker, tests in _of_file(tree, file, source, named, settings, kept) if named else ():
                found[marker].extend(tests)
    return {marker: tuple(tests) for marker, tests in found.items()}


Kept = MutableMapping[bytes, tuple[tuple[str, tuple[MarkedTest, ...]], ...]]
"""Digest of a file's path and content, the markers and pytest's settings -> tests by marker."""


def _of_file(
    tree: SourceTree,
    file: str,
    source: bytes,
    named: tuple[str, ...],
    settings: PytestSettings,
    kept: Kept | None,
) -> tuple[tuple[str, tuple[MarkedTest, ...]], ...]:
    key = hashlib.blake2b(f"{file} {named} {settings}\0".encode() + source, digest_size=16).digest()
    known = kept.get(key) if kept is not None else None
    if known is not None:
        return known
    index = tree.index(file)
    if index is None or index.error_line is not None:
        return ()
    module = _parsed(source)
    origins = _origins(module)
    answer = tuple((one, tuple(_marked(file, module, index, one, settings, origins))) for one in named)
    if kept is not None:
        kept[key] = answer
    return answer


def _is_under(file: str, paths: tuple[str, ...]) -> bool:
    folders = [path.removeprefix("./").rstrip("/") for path in paths]
    return not folders or any(
        folder in ("", ".") or file == folder or file.startswith(f"{folder}/") or fnmatch(file, f"{folder}/*")
        for folder in folders
    )


def _parsed(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _marked(
    file: str,
    module: ast.Module,
    index: SymbolIndex,
    marker: str,
    settings: PytestSettings,
    origins: Mapping[str, str],
) -> Iterator[MarkedTest]:
    names = _aliases(module, marker, origins)
    definitions = {(*one.parents, one.name): one for one in index.definitions}
    for parts, node in _functions(module.body, (), names, marked=_says(module.body, names)):
        one = definitions.get(parts)
        if one is not None:
            yield MarkedTest(
                path=file,
                parts=parts,
                line=node.lineno,
                why_not=why_not_collected(one, index, settings),
                skipped="ignored" in one.marks,
            )


def _functions(
    body: list[ast.stmt], parents: tuple[str, ...], names: frozenset[str], *, marked: bool
) -> Iterator[tuple[tuple[str, ...], Function]]:
    for node in body:
        if isinstance(node, Function):
            if marked or any(_carries(one, names) for one in node.decorator_list):
                yield (*parents, node.name), node
        elif isinstance(node, ast.ClassDef):
            own = any(_carries(one, names) for one in node.decorator_list) or _says(node.body, names)
            yield from _functions(node.body, (*parents, node.name), names, marked=marked or own)
        else:
            yield from _functions(_blocks(node), parents, names, marked=marked)


def _blocks(node: ast.stmt) -> list[ast.stmt]:
    inner = [one for name in ("body", "orelse", "finalbody") for one in getattr(node, name, ())]
    return inner + [one for handler in getattr(node, "handlers", ()) for one in handler.body]


def _origins(module: ast.Module) -> dict[str, str]:
    """Names by which the module knows pytest and what it takes from there."""
    origins: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            origins.update({one.asname: one.name for one in node.names if one.asname})
        elif isinstance(node, ast.ImportFrom) and node.module == "pytest":
            origins.update({one.asname or one.name: f"pytest.{one.name}" for one in node.names})
    return origins


def _aliases(module: ast.Module, marker: str, origins: Mapping[str, str]) -> frozenset[str]:
    """The marker in dotted words, and the names of the module that stand for it."""
    roots = {"pytest.mark", *(known for known, origin in origins.items() if origin == "pytest.mark")}
    roots |= {f"{known}.mark" for known, origin in origins.items() if origin == "pytest"}
    names = {f"{root}.{marker}" for root in roots}
    for node in module.body:
        if isinstance(node, ast.Assign) and _dotted(node.value) in names:
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(names - {"pytestmark"})


def _says(body: list[ast.stmt], names: frozenset[str]) -> bool:
    """Whether a block's own ``pytestmark`` carries the marker."""
    values = [
        node.value
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "pytestmark"
    ]
    return any(_carries(value, names) for value in values if value is not None)


def _carries(node: ast.expr, names: frozenset[str]) -> bool:
    """Whether a decorator, a ``pytestmark``, or a ``pytest.param`` within it is the marker."""
    return any(isinstance(one, ast.Name | ast.Attribute) and _dotted(one) in names for one in ast.walk(node))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _dotted(node.func)
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return node.id if isinstance(node, ast.Name) else ""
