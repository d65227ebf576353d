"""Proofs that a contract cites by a file, or a module, and the name of a theorem or harness in it.

``lean: {theorem: Softmax.bounded, module: Proofs.Softmax, status: proved}``, ``lean_theorems``,
``lean_theorem`` beside a ``proof_file``, ``kani_harnesses`` with a file (provable-contracts).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from apr_falsify.contracts.hollow import PROOFS, without_comments
from apr_falsify.contracts.model import STATUS_KEYS, Citation, Contract, entries, place_of, text_of
from apr_falsify.contracts.names import PathName, parse_path
from apr_falsify.contracts.problem import Place
from apr_falsify.contracts.resolution import RESOLVED, UNCHECKED, Resolution, did_you_mean, missing
from apr_falsify.contracts.roots import FoundPath, SearchScope
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value
from apr_falsify.contracts.statuses import claims_shown, is_unbuilt, root_of
from apr_falsify.symbols.vocabulary import close_matches

_LANGUAGES = ("lean", "coq", "isabelle", "proof", "lean4")
_FILES = ("file", "lean_file", "path", "proof_file", "proof_path", "lean_proof_file", "coq_file")
_NAMES = ("theorem", "lean_theorem", "lemma", "name")
_FOLDERS = ("", "lean/", "proofs/", "proofs/lean/", "formal/", "lean4/")
"""Where the root of a tree's Lean modules may lie."""
_MOST_FILES = 300
_IMPORT = re.compile(r"^[ \t]*(?:public\s+)?import\s+([\w.]+)", re.MULTILINE)
_DEFINED = re.compile(r"\b(?:theorem|lemma|def|abbrev|Theorem|Lemma|Definition)\s+([\w.']+)")


def proof_citations(contract: Contract) -> Iterator[Citation]:
    """The theorems and harnesses that entries of a contract say to be there, each with its file."""
    if is_unbuilt(contract.status):
        return
    yield from _walk(contract.data, "")
    yield from _harnesses(contract)


def _walk(value: Value, key: str) -> Iterator[Citation]:
    if isinstance(value, Sequence):
        for at, item in enumerate(value):
            yield from _walk(item, f"{key}[{at}]")
    if not isinstance(value, Mapping):
        return
    for name, item in value.items():
        where = f"{key}.{name}" if key else str(name)
        if name in _LANGUAGES and isinstance(item, Mapping):
            yield from _theorem(item, item, where)
        elif name == "lean_theorems":
            for inner, one in _named(item, where):
                yield from _theorem(one, one, inner)
        elif name == "lean_theorem" and isinstance(item, Text):
            yield from _theorem(value, value, key)
        if isinstance(item, Mapping | Sequence):
            yield from _walk(item, where)


def _named(value: Value, key: str) -> Iterator[tuple[str, Mapping]]:
    pairs = ((f"{key}.{name}", item) for name, item in value.items()) if isinstance(value, Mapping) else ()
    for where, item in (*pairs, *(entries(value, key) if isinstance(value, Sequence) else ())):
        if isinstance(item, Mapping):
            yield where, item


def _is_said_to_be(holder: Mapping) -> bool:
    """Whether an entry does not itself say that its proof is still to come."""
    words = [word for name in STATUS_KEYS if (word := text_of(holder, name))]
    return not words or any(claims_shown(word) or root_of(word) in _SHOWN for word in words)


_SHOWN = ("PROVED", "PROVEN", "COMPLETE", "DONE", "VERIFIED", "CHECKED")


def _theorem(holder: Mapping, said: Mapping, key: str) -> Iterator[Citation]:
    paths = tuple(_paths(holder))
    if not paths or not _is_said_to_be(said):
        return
    for name in _NAMES:
        theorem = holder.get(name)
        if isinstance(theorem, Text) and re.fullmatch(r"[A-Za-z_][\w.']*", theorem.strip()):
            yield _citation(theorem, theorem.strip(), place_of(theorem, f"{key}.{name}"), paths)
            return


def _citation(text: Text, name: str, place: Place, paths: tuple[PathName, ...]) -> Citation:
    return Citation(kind="theorem", text=text, name=name, place=place, paths=paths)


def _paths(holder: Mapping) -> Iterator[PathName]:
    """The file that an entry names, else the places where its module may lie."""
    for name in _FILES:
        for _, value in entries(holder.get(name), name):
            path = parse_path(value) if isinstance(value, Text) else None
            if path and path.path.endswith(PROOFS):
                yield PathName(path=path.path, source=path.source)
    module = text_of(holder, "module")
    if re.fullmatch(r"\w+(?:\.\w+)+", module):
        yield from (PathName(path=f"{folder}{module.replace('.', '/')}.lean") for folder in _FOLDERS)


def _harnesses(contract: Contract) -> Iterator[Citation]:
    """Harnesses of Kani: in the file that their entry names, anywhere where the entry says to be proved."""
    for key, item in _named(contract.data.get("kani_harnesses"), "kani_harnesses"):
        harness = item.get("harness")
        if not isinstance(harness, Text) or not re.fullmatch(r"(?:\w+::)*\w+", harness.strip()):
            continue
        paths = [parse_path(text_of(item, name)) for name in ("file", "path", "kani_file", "location")]
        found = tuple(path for path in paths if path and path.path.endswith(".rs"))
        claims = any(claims_shown(text_of(item, name)) for name in STATUS_KEYS)
        if claims or (found and _is_said_to_be(item)):
            yield Citation(
                kind="symbol",
                text=harness,
                name=harness.strip(),
                place=place_of(harness, f"{key}.harness"),
                paths=tuple(PathName(path=one.path, source=one.source) for one in found),
            )


def resolve_theorem(citation: Citation, scope: SearchScope) -> Resolution:
    """Look for a theorem in its file and in what that imports; where no file is, that is said for itself."""
    found = next((there for path in citation.paths if (there := scope.find(path))), ())
    texts = [text for one in found for text in _texts(one)]
    if not texts:
        return UNCHECKED
    last = citation.name.rpartition(".")[2]
    word = re.compile(rf"(?<![\w']){re.escape(last)}(?![\w'])")
    if any(word.search(text) for text in texts):
        return RESOLVED
    names = [name.rpartition(".")[2] for text in texts for name in _DEFINED.findall(text)]
    near = close_matches(last, names, 2, 0.6)
    return missing(
        "symbol-not-found", f"{citation.name!r} is no theorem of {found[0].shown}", did_you_mean(near)
    )


def _texts(found: FoundPath) -> Iterator[str]:
    """A file without its comments, and the files of its tree that it imports."""
    if found.is_directory:
        return
    pending, seen = [found.relative], {found.relative}
    module = os.path.splitext(found.relative)[0]
    while pending and len(seen) < _MOST_FILES:
        path = pending.pop()
        source = found.tree.read_bytes(path)
        if source is None:
            continue
        text = without_comments(path, source.decode("utf-8", "replace"))
        yield text
        for name in _IMPORT.findall(text):
            file = _beside(module, name)
            if file and file not in seen and found.tree.locate(file):
                seen.add(file)
                pending.append(file)


def _beside(module: str, name: str) -> str:
    """The file of an imported module, from the first folder that both have in common."""
    parts, own = name.split("."), module.split("/")
    if parts[0] not in own:
        return ""
    return "/".join([*own[: own.index(parts[0])], *parts]) + ".lean"
