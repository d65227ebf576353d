"""Everything a contract says exists: files, symbols and tests, each with its place."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from apr_falsify.contracts.model import TEST_KEYS, Citation, Contract, Falsifier, entries, place_of
from apr_falsify.contracts.names import PathName, parse_path, parse_symbols, parse_test
from apr_falsify.contracts.problem import Place
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value
from apr_falsify.contracts.statuses import BLOCKER, UNBUILT, rung_of, word_of
from apr_falsify.symbols.markers import is_marker, selected_markers

_FILE_KEYS = ("file_paths", "file_path", "files", "file", "paths", "path", "source_files", "source_file")
_NAME_KEYS = ("function_names", "function_name", "functions", "function", "symbols", "symbol")
# words that name code only where files stand beside them inside an evidence block
_NAME_KEYS_IN_EVIDENCE = """
    names types type_names structs enums variants classes methods constants macros traits
    """.split()  # noqa: SIM905 - words read best as words
_FILE_KEYS_OUTSIDE = ("file_paths", "file_path", "source_files", "source_file")
_TEST_NAME_KEYS = ("test_names", "test_functions", "test_name", "tests", "test")
_HOLDERS = (Mapping, Sequence)
_SEVERAL = re.compile(r"[,\n]").search
_LOCATION_KEYS = frozenset(("applies_to", "implementation", "location", "implemented_in", "implemented_by"))
_PATH_IN_PROSE = re.compile(
    r"(?<![\w/.:-])((?:[a-z][\w-]*:)?(?:[\w.-]+/)+[\w.-]+\.(?:rs|py)(?:::\w+)*)(?![\w/*])"
)


def citations(contract: Contract) -> Iterator[Citation]:
    """All citations of a contract, in the order they stand."""
    absent = word_of(contract.status) in UNBUILT
    for falsifier in contract.falsifiers:
        yield from _of_falsifier(falsifier, contract_unbuilt=absent)
    taken = {falsifier.place.key for falsifier in contract.falsifiers}
    yield from _locations(contract.data, "", taken, absent)
    yield from _top_files(contract, absent)


def _of_falsifier(falsifier: Falsifier, *, contract_unbuilt: bool) -> Iterator[Citation]:
    if falsifier.status:
        absent = rung_of(falsifier.status) == BLOCKER or word_of(falsifier.status) in UNBUILT
    else:
        absent = contract_unbuilt
    paths: list[PathName] = []
    for key, block in falsifier.evidence:
        yield from _evidence(block, key, absent, paths)
    yield from _group(falsifier.data, falsifier.place.key, absent, paths)
    for name in [name for name in falsifier.data if name in TEST_KEYS]:
        for key, value in entries(falsifier.data[name], f"{falsifier.place.key}.{name}"):
            if isinstance(value, Text):
                yield from _tests(value, place_of(value, key), absent, tuple(paths))
    evidence = falsifier.data.get("evidence")
    for key, value in entries(evidence, f"{falsifier.place.key}.evidence"):
        if isinstance(value, Text):
            yield from _tests(value, place_of(value, key), absent, tuple(paths), bare=False)
    yield from _locations(falsifier.data, falsifier.place.key, set(), absent)


def _evidence(block: Value, key: str, absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    if isinstance(block, Mapping):
        yield from _group(block, key, absent, paths)
    elif isinstance(block, Sequence):
        yield from _listed(block, key, absent, paths)
    elif isinstance(block, Text):
        yield from _listed_texts([(key, block)], absent, paths)


def _group(mapping: Mapping, key: str, absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    """Files and names given side by side: each name must be in one of the files."""
    own: list[PathName] = []
    inside = ".algorithm_evidence" in key or ".evidence_discharged_by" in key
    for name in [name for name in mapping if name in (_FILE_KEYS if inside else _FILE_KEYS_OUTSIDE)]:
        value = mapping[name]
        if isinstance(value, Mapping):
            yield from _names_by_file(value, f"{key}.{name}", absent, own)
            continue
        for where, item in entries(value, f"{key}.{name}"):
            if isinstance(item, Text):
                yield from _files(item, place_of(item, where), absent, own)
            elif isinstance(item, Mapping):
                yield from _group(item, where, absent, own)
    paths.extend(own)
    loose = _NAME_KEYS_IN_EVIDENCE if inside and own else ()
    for name in [name for name in mapping if name in _NAME_KEYS or name in loose]:
        for where, item in entries(mapping[name], f"{key}.{name}"):
            if isinstance(item, Text):
                yield from _symbols(item, place_of(item, where), absent, tuple(own or paths))
            elif isinstance(item, Mapping):
                yield from _named_item(item, where, absent, own or paths)
    if inside:
        yield from _group_tests(mapping, key, absent, own or paths)


def _group_tests(mapping: Mapping, key: str, absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    for name in [name for name in mapping if name in _TEST_NAME_KEYS]:
        for where, item in entries(mapping[name], f"{key}.{name}"):
            if isinstance(item, Text):
                yield from _tests(item, place_of(item, where), absent, tuple(paths))


def _named_item(item: Mapping, key: str, absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    """``{name: f, file: a.py}`` inside a list of names."""
    name = item.get("name")
    own: list[PathName] = []
    yield from _group(item, key, absent, own)
    if isinstance(name, Text):
        yield from _symbols(name, place_of(name, f"{key}.name"), absent, tuple(own or paths))


def _names_by_file(mapping: Mapping, key: str, absent: bool, own: list[PathName]) -> Iterator[Citation]:
    """``{a.py: [f, g]}``: names under the file they are in."""
    for file, names in mapping.items():
        mine: list[PathName] = []
        if isinstance(file, Text):
            yield from _files(file, place_of(file, f"{key}.{file}"), absent, mine)
        for where, item in entries(names, f"{key}.{file}"):
            if isinstance(item, Text):
                yield from _symbols(item, place_of(item, where), absent, tuple(mine))
        own.extend(mine)


def _files(
    text: Text, place: Place, absent: bool, own: list[PathName], role: str = "evidence"
) -> Iterator[Citation]:
    pieces = [piece for piece in re.split(r",\s+|\n", text) if piece.strip()] if _SEVERAL(text) else [text]
    several = [parse_path(piece) for piece in pieces]
    paths = several if len(several) > 1 and all(several) else [parse_path(text, surely=True)]
    for path in paths:
        if path is None:
            continue
        if path.symbol:
            yield _symbol(path.symbol, text, place, absent, (path,), role)
        for one in path.alternatives():
            mine = PathName(path=one, source=path.source)
            own.append(mine)
            yield Citation(
                kind="file", text=text, place=place, paths=(mine,), expected_absent=absent, role=role
            )


def _symbol(
    name: str,
    text: str,
    place: Place,
    absent: bool,
    paths: tuple[PathName, ...],
    role: str = "evidence",
) -> Citation:
    return Citation(
        kind="symbol",
        text=text,
        name=name.replace(".", "::"),
        place=place,
        paths=paths,
        expected_absent=absent,
        role=role,
    )


def _symbols(text: Text, place: Place, absent: bool, paths: tuple[PathName, ...]) -> Iterator[Citation]:
    own = parse_path(text)
    if own and (own.symbol or own.path.endswith((".py", ".rs"))):
        yield from _files(text, place, absent, [])
        return
    source, colon, rest = text.partition(":")
    if colon and re.match(r"^[A-Za-z][\w-]*$", source) and re.match(r"^[A-Za-z_]", rest):
        text_here, prefix = Text(rest), source
    else:
        text_here, prefix = text, ""
    names = parse_symbols(text_here)
    if prefix:
        paths = tuple(path for path in paths if path.source == prefix) or (PathName(path="", source=prefix),)
    for name in names:
        yield _symbol(name, text, place, absent, paths)
    if not names:
        yield Citation(kind="prose", text=text, place=place)


def _listed(block: Sequence, key: str, absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    texts = []
    for where, item in entries(block, key):
        if isinstance(item, Mapping):
            yield from _group(item, where, absent, paths)
        elif isinstance(item, Text):
            texts.append((where, item))
    yield from _listed_texts(texts, absent, paths)


def _listed_texts(texts: list[tuple[str, Text]], absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    """A plain list: sentences, in which paths are certain, and a name only where it stands alone."""
    named: list[tuple[str, Text]] = []
    for where, text in texts:
        place = place_of(text, where)
        tests = parse_test(text)
        if tests.cargo or tests.nodes:
            yield from _tests(text, place, absent, tuple(paths))
            continue
        found = [path for path in map(parse_path, _PATH_IN_PROSE.findall(text)) if path]
        whole = parse_path(text)
        if not found and whole and not whole.escapes:
            found = [whole]
        for path in found:
            yield from _files(_like(text, _shown(path)), place, absent, paths)
        if not found:
            named.append((where, text))
    for where, text in named:
        alone = re.match(
            r"^`?[A-Za-z_][\w:.]*(?:\(\))?`?\s*(?:\(.*\)|[\u2014\u2013].*|-{1,2}\s.*|:\s.*)?$",
            text,
            re.DOTALL,
        )
        names = parse_symbols(text) if alone and re.search(r"_|::|\w\.\w|[a-z][A-Z]", text.split()[0]) else ()
        for name in names:
            yield _symbol(name, text, place_of(text, where), absent, tuple(paths))
        if not names:
            yield Citation(kind="prose", text=text, place=place_of(text, where))


def _shown(path: PathName) -> str:
    source = f"{path.source}:" if path.source else ""
    return f"{source}{path.path}" + (f"::{path.symbol}" if path.symbol else "")


def _like(text: Text, other: str) -> Text:
    made = Text(other)
    made.line, made.column, made.is_block = text.line, text.column, False
    return made


def _tests(
    text: Text, place: Place, absent: bool, paths: tuple[PathName, ...], *, bare: bool = True
) -> Iterator[Citation]:
    names = parse_test(text)

    def cite(kind: str, shown: str, **more: object) -> Citation:
        return Citation(
            kind=kind,
            text=shown,
            place=_line_of(shown, text, place),
            expected_absent=absent,
            role="test",
            **more,  # type: ignore[arg-type]  # the fields that one kind of citation has
        )

    for node in names.nodes:
        shown = "::".join((_shown(node.path), *node.parts))
        yield cite("pytest", shown, name="::".join(node.parts), paths=(node.path,))
    for marker in selected_markers(text) if "-m" in text else ():
        if is_marker(marker):
            yield cite("marker", f"pytest -m {marker}", name=marker)
    for command in names.cargo:
        yield cite("cargo", str(text).strip().splitlines()[0], name=" ".join(command.filters), cargo=command)
    for run in names.runs:
        chosen = f"-k {run.keyword}" if run.keyword else f"-m {run.marker}"
        yield cite("run", f"pytest {chosen}", name=run.keyword or run.marker, run=run)
    for target in names.targets:
        yield cite("target", f"{target.tool} {target.name}", name=target.name, target=target)
    for file in names.files:
        if file.symbol == "unittest":
            yield cite("unittest", file.path, name=file.path)
        elif file.symbol:
            yield cite("symbol", _shown(file), name=file.symbol, paths=(file,))
        else:
            yield cite("file", _shown(file), paths=(file,))
    for name in names.bare if bare else ():
        yield cite("test", name, name=name, paths=paths)


def _line_of(part: str, text: Text, place: Place) -> Place:
    """The line of a literal block that a part of it stands in; else the value's own place."""
    at = text.find(part) if text.is_block else -1
    if at < 0:
        return place
    return Place(line=place.line + 1 + text.count("\n", 0, at), column=1, key=place.key)


def _locations(
    value: Mapping | Sequence, key: str, skip: Collection[str], absent: bool
) -> Iterator[Citation]:
    """``applies_to: path::symbol`` and its like, wherever they stand."""
    if key in skip:
        return
    if isinstance(value, Sequence):
        for at, item in enumerate(value):
            if isinstance(item, _HOLDERS):
                yield from _locations(item, f"{key}[{at}]", skip, absent)
        return
    for name, item in value.items():
        if isinstance(item, _HOLDERS):
            yield from _locations(item, f"{key}.{name}" if key else str(name), skip, absent)
        elif name in _LOCATION_KEYS and isinstance(item, Text):
            path = parse_path(item)
            if path and path.path.endswith((".py", ".rs", ".pyi")):
                where = f"{key}.{name}" if key else str(name)
                yield from _files(item, place_of(item, where), absent, [], "location")


def _top_files(contract: Contract, absent: bool) -> Iterator[Citation]:
    for key, item in entries(contract.data.get("files"), "files"):
        if isinstance(item, Mapping) and isinstance(item.get("path"), Text):
            value = item["path"]
            assert isinstance(value, Text)
            yield from _files(value, place_of(value, f"{key}.path"), absent, [], "location")
