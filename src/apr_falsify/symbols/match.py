"""Finding a qualified name among the definitions of files: ``Enum::Variant``, ``module::function``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from apr_falsify.symbols.index import Definition, SymbolIndex
from apr_falsify.symbols.tree import SourceTree


def lookup(tree: SourceTree, relative: str, name: str) -> Definition | None:
    """Find ``name`` in a file or in what it pulls in by ``include!`` and ``mod``."""
    *qualifiers, last = name.split("::")
    for file, index in tree.parts(relative):
        for one in _named(index, last):
            if fits(one, qualifiers, file, index):
                return one
    return None


def _named(index: SymbolIndex, last: str) -> Iterator[Definition]:
    if "*" in last:
        return (one for one in index.definitions if fnmatch.fnmatchcase(one.name, last))
    return index.named(last)


def fits(one: Definition, qualifiers: list[str], file: str, index: SymbolIndex) -> bool:
    """Whether every qualifier names something around the definition: folder, file, module or type.

    A method also fits under a class that inherits the one it is written in.
    """
    if not qualifiers:
        return True
    path = PurePosixPath(file)
    around = [*(part.replace("-", "_") for part in (*path.parts[:-1], path.stem)), *one.parents]
    heirs = {heir for heir, shape in index.classes.items() if set(shape.bases) & set(one.parents)}
    heirs |= {heir for heir, traits in index.traits_of.items() if set(traits) & set(one.parents)}
    position = 0
    for wanted in qualifiers:
        wanted = wanted.replace("-", "_")
        places = [at for at in range(position, len(around)) if around[at] == wanted]
        if places:
            position = places[0] + 1
        elif wanted not in heirs:
            return False
    return True


def is_reexported(tree: SourceTree, relative: str, name: str) -> bool:
    """Whether a file passes ``name`` on: imported in Python, ``pub use`` in Rust, or named to a macro."""
    first, *_, last = (*name.split("::"), name.split("::")[-1])
    for _, index in tree.parts(relative):
        if last in index.possible and "::" not in name:
            return True
        for known_by, origin in index.reexports:
            if known_by == name or (known_by == last and "::" in name and origin.endswith(first)):
                return True
            if known_by == "*" and _from_module(tree, origin, last):
                return True
    return False


def _from_module(tree: SourceTree, origin: str, last: str) -> bool:
    module = re.split(r"::|\.", origin.removesuffix(".*"))[-1].replace("-", "_")
    return any(module in _stems(file) for file, _ in tree.find(last))


def _stems(file: str) -> list[str]:
    path = PurePosixPath(file)
    return [part.replace("-", "_") for part in (*path.parts[:-1], path.stem)]


def is_inherited(tree: SourceTree, relative: str, name: str) -> bool:
    """Whether ``Class::method`` comes from a base class or trait written elsewhere in the tree."""
    *qualifiers, last = name.split("::")
    if not qualifiers:
        return False
    bases: set[str] = set()
    for _, index in tree.parts(relative):
        shape = index.classes.get(qualifiers[-1])
        bases |= {base.rpartition(".")[2] for base in shape.bases} if shape else set()
        bases |= set(index.traits_of.get(qualifiers[-1], ()))
    return bool(bases) and any(bases & set(one.parents) for _, one in tree.find(last))
