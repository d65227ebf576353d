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
            if not qualifiers or fits(one, qualifiers, file, index, tree.package_of(file)):
                return one
    return None


def _named(index: SymbolIndex, last: str) -> Iterator[Definition]:
    if "*" in last:
        return (one for one in index.definitions if fnmatch.fnmatchcase(one.name, last))
    return index.named(last)


def fits(one: Definition, qualifiers: list[str], file: str, index: SymbolIndex, package: str = "") -> bool:
    """Whether every qualifier names something around the definition: package, folder, file, module or type.

    A method also fits under a class that inherits the one it is written in.
    """
    if not qualifiers:
        return True
    path = PurePosixPath(file)
    outer = (package, *path.parts[:-1], path.stem)
    around = [*(part.replace("-", "_") for part in outer), *one.parents]
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


# what a trait or base class of a standard library gives, so that a method may stand nowhere in a tree
_GIVEN = {
    "Default": "default",
    "Clone": "clone clone_from",
    "Debug": "fmt",
    "Display": "fmt to_string",
    "FromStr": "from_str parse",
    "From": "from into",
    "TryFrom": "try_from try_into",
    "PartialEq": "eq ne",
    "PartialOrd": "partial_cmp lt le gt ge",
    "Ord": "cmp max min clamp",
    "Hash": "hash",
    "Drop": "drop",
    "Deref": "deref",
    "Iterator": "next map filter collect fold enumerate zip sum count",
    "Error": "source description",
    "Serialize": "serialize",
    "Deserialize": "deserialize",
    "Parser": "parse try_parse parse_from",
    "Enum": "name value",
    "StrEnum": "name value",
    "IntEnum": "name value",
    "NamedTuple": "_replace _asdict _make _fields",
    "Exception": "args with_traceback add_note",
    "ValueError": "args with_traceback add_note",
    "RuntimeError": "args with_traceback add_note",
    "ABC": "",
    "Protocol": "",
    "Generic": "",
    "object": "",
    "TypedDict": "get keys values items",
}


def bases_of(tree: SourceTree, relative: str, name: str) -> set[str]:
    """Base classes and traits of the type a qualified name is in."""
    owner = name.split("::")[-2] if "::" in name else ""
    bases: set[str] = set()
    for _, index in tree.parts(relative) if owner else ():
        shape = index.classes.get(owner)
        bases |= {base.rpartition(".")[2] for base in shape.bases} if shape else set()
        bases |= set(index.traits_of.get(owner, ()))
    return bases


def is_inherited(tree: SourceTree, relative: str, name: str) -> bool:
    """Whether ``Class::method`` comes from a base class or trait written elsewhere, or a standard one."""
    owner, _, last = name.rpartition("::")
    bases = bases_of(tree, relative, name)
    if last in ("name", "value") and (member := lookup(tree, relative, owner)) and member.kind == "attribute":
        return True  # of an enum's member
    if any(last in _GIVEN.get(base, "").split() for base in bases):
        return True
    if last.startswith("__") and last.endswith("__") and "::" in name:  # every Python class has these
        return lookup(tree, relative, name.rpartition("::")[0]) is not None
    return bool(bases) and any(bases & set(one.parents) for _, one in tree.find(last))


def has_foreign_base(tree: SourceTree, relative: str, name: str) -> bool:
    """Whether a class of a Python file has a base class that is nowhere in the tree, nor a standard one."""
    if not relative.endswith((".py", ".pyi")):
        return False
    return any(base not in _GIVEN and not tree.find(base) for base in bases_of(tree, relative, name))
