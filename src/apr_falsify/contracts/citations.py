"""Everything a contract says exists: files, symbols and tests, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator

from apr_falsify.contracts.cited_tests import cited_tests, shown_path
from apr_falsify.contracts.evidence_keys import (
    BLOCK,
    CODE,
    LIVE,
    LOCATION,
    PLACE,
    first_of,
    is_inside_evidence,
    keys_read_as,
)
from apr_falsify.contracts.model import (
    STATUS_KEYS,
    TEST_KEYS,
    Citation,
    Contract,
    Falsifier,
    entries,
    place_of,
    text_of,
)
from apr_falsify.contracts.names import PathName, parse_path, parse_symbols, parse_test
from apr_falsify.contracts.problem import Place
from apr_falsify.contracts.prose import (
    functions_of,
    inline_code,
    is_label,
    label,
    names_in_prose,
    without_alternatives,
)
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value
from apr_falsify.contracts.statuses import PARTIAL, claims_shown, is_unbuilt, rung_of, says_absent
from apr_falsify.symbols.markers import is_marker, selected_markers

_FILE_KEYS = ("file_paths", "file_path", "files", "file", "paths", "path", "source_files", "source_file")
_NAME_KEYS = ("function_names", "function_name", "functions", "function", "symbols", "symbol")
# words that name code only where files stand beside them inside an evidence block
_NAME_KEYS_IN_EVIDENCE = """
    names types type_names structs enums variants classes methods constants macros traits
    """.split()  # noqa: SIM905 - words read best as words
_FILE_KEYS_OUTSIDE = ("file_paths", "file_path", "source_files", "source_file")
_TEST_NAME_KEYS = ("test_names", "test_functions", "test_name", "tests", "test")
READ_IN_GROUPS = frozenset(
    (
        *_FILE_KEYS,
        *_NAME_KEYS,
        *_NAME_KEYS_IN_EVIDENCE,
        *_TEST_NAME_KEYS,
        *keys_read_as(BLOCK, LIVE, LOCATION, PLACE),
    )
)
"""Keys of a mapping of evidence that are read by themselves."""
_SEVERAL = re.compile(r"[,\n]").search
_PATH_IN_PROSE = re.compile(
    r"(?<![\w/.:-])((?:[a-z][\w-]*:)?(?:[\w.-]+/)+[\w.-]+\.(?:rs|py)(?:::\w+)*)(?![\w/*])"
)


def citations(contract: Contract) -> Iterator[Citation]:
    """All citations of a contract, in the order they stand."""
    absent = is_unbuilt(contract.status)
    for falsifier in contract.falsifiers:
        yield from _of_falsifier(falsifier, contract.status)
    yield from _of_tasks(contract)
    yield from _top_files(contract, absent)


def _of_tasks(contract: Contract) -> Iterator[Citation]:
    """What the tasks that say to be done name; of one that is still to do nothing need be there."""
    for key, item in entries(contract.data.get("tasks"), "tasks"):
        words = [text_of(item, name) for name in STATUS_KEYS] if isinstance(item, Mapping) else []
        if isinstance(item, Mapping) and any(claims_shown(word, of_task=True) for word in words):
            yield from group(item, f"{key}.evidence", False, [])


def _of_falsifier(falsifier: Falsifier, contract_status: str) -> Iterator[Citation]:
    absent = says_absent(falsifier.status) if falsifier.status else is_unbuilt(contract_status)
    claims = claims_shown(falsifier.status or contract_status) or rung_of(falsifier.status) == PARTIAL
    paths: list[PathName] = []
    for key, block in falsifier.evidence:
        yield from evidence_block(block, key, absent, paths)
    yield from group(falsifier.data, falsifier.place.key, absent, paths)
    for name in first_of(TEST_KEYS, falsifier.data):
        for key, value in entries(falsifier.data[name], f"{falsifier.place.key}.{name}"):
            if isinstance(value, Mapping):
                yield from group(value, key, absent, paths)
            elif isinstance(value, Text) and value.is_block and functions_of(value):
                yield from inline_code(value, place_of(value, key), absent, claims=claims)
            elif isinstance(value, Text):
                yield from named_tests(value, place_of(value, key), absent, tuple(paths))
    yield from _own_evidence(falsifier, absent, paths)
    for key in keys_read_as(CODE):
        text = falsifier.data.get(key)
        if isinstance(text, Text):
            yield from inline_code(
                text, place_of(text, f"{falsifier.place.key}.{key}"), absent, claims=claims
            )


def _own_evidence(falsifier: Falsifier, absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    """``evidence``: a bundle, which is judged elsewhere, a command, or a block as any other."""
    where, value = f"{falsifier.place.key}.evidence", falsifier.data.get("evidence")
    if isinstance(value, Mapping):
        yield from () if "bundle" in value else group(value, where, absent, paths)
        return
    for key, item in entries(value, where):
        if isinstance(item, Mapping):
            yield from group(item, key, absent, paths)
        elif isinstance(item, Text) and runs_something(item):
            yield from named_tests(item, place_of(item, key), absent, tuple(paths), bare=False)
        elif isinstance(item, Text):
            yield from listed_texts([(key, item)], absent, paths)


def evidence_block(block: Value, key: str, absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    """What a block of evidence names: files and names side by side, or sentences."""
    if isinstance(block, Mapping):
        yield from group(block, key, absent, paths)
    elif isinstance(block, Sequence):
        yield from _listed(block, key, absent, paths)
    elif isinstance(block, Text):
        yield from listed_texts([(key, block)], absent, paths)


def group(mapping: Mapping, key: str, absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    """Files and names given side by side: each name must be in one of the files."""
    own: list[PathName] = []
    inside = is_inside_evidence(key)  # there plain words name files, functions and tests
    for name in [name for name in mapping if name in (_FILE_KEYS if inside else _FILE_KEYS_OUTSIDE)]:
        value = mapping[name]
        if isinstance(value, Mapping):
            yield from _names_by_file(value, f"{key}.{name}", absent, own)
            continue
        for where, item in entries(value, f"{key}.{name}"):
            if isinstance(item, Text):
                yield from files_in(item, place_of(item, where), absent, own)
            elif isinstance(item, Mapping):
                yield from group(item, where, absent, own)
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
                yield from named_tests(item, place_of(item, where), absent, tuple(paths), surely=bool(paths))


def _named_item(item: Mapping, key: str, absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    """``{name: f, file: a.py}`` inside a list of names."""
    name = item.get("name")
    own: list[PathName] = []
    yield from group(item, key, absent, own)
    if isinstance(name, Text):
        yield from _symbols(name, place_of(name, f"{key}.name"), absent, tuple(own or paths))


def _names_by_file(mapping: Mapping, key: str, absent: bool, own: list[PathName]) -> Iterator[Citation]:
    """``{a.py: [f, g]}``: names under the file they are in."""
    for file, names in mapping.items():
        mine: list[PathName] = []
        if isinstance(file, Text):
            yield from files_in(file, place_of(file, f"{key}.{file}"), absent, mine)
        for where, item in entries(names, f"{key}.{file}"):
            if isinstance(item, Text):
                yield from _symbols(item, place_of(item, where), absent, tuple(mine))
        own.extend(mine)


def files_in(
    text: Text, place: Place, absent: bool, own: list[PathName], role: str = "evidence"
) -> Iterator[Citation]:
    """Cite the files a text names, and what it names in them; ``own`` takes the files."""
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
        yield from files_in(text, place, absent, [])
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
            yield from group(item, where, absent, paths)
        elif isinstance(item, Text):
            texts.append((where, item))
    yield from listed_texts(texts, absent, paths)


def listed_texts(texts: list[tuple[str, Text]], absent: bool, paths: list[PathName]) -> Iterator[Citation]:
    """A plain list: sentences, in which paths are certain, and a name only where it stands alone."""
    named: list[tuple[str, Text]] = []
    for where, text in texts:
        place = place_of(text, where)
        if runs_something(text):
            yield from named_tests(text, place, absent, tuple(paths))
            continue
        found = [path for path in map(parse_path, _PATH_IN_PROSE.findall(text)) if path]
        whole = parse_path(text)
        if not found and whole and not whole.escapes:
            found = [whole]
        for path in found:
            yield from files_in(_like(text, shown_path(path)), place, absent, paths)
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
            yield from names_in_prose(text, place_of(text, where), absent)


def runs_something(text: str) -> bool:
    """Whether a text is, or holds, a command that runs tests."""
    tests = parse_test(text)
    return bool(tests.cargo or tests.nodes)


def _like(text: Text, other: str) -> Text:
    made = Text(other)
    made.line, made.column, made.is_block = text.line, text.column, False
    return made


def named_tests(
    text: Text,
    place: Place,
    absent: bool,
    paths: tuple[PathName, ...],
    *,
    bare: bool = True,
    surely: bool = False,
) -> Iterator[Citation]:
    """Cite the tests a text names; ``bare`` says that a single word may be one, ``surely`` that it is."""
    names = parse_test(without_alternatives(text))

    def line(part: str) -> Place:
        return _line_of(part, text, place)

    yield from cited_tests(names, text, line, absent)
    for marker in selected_markers(text) if "-m" in text else ():
        if is_marker(marker):
            shown = f"pytest -m {marker}"
            yield _test("marker", shown, line(shown), absent, name=marker)
    labels = not surely and all(map(is_label, names.bare))  # beside a test's path the others are tests too
    for name in names.bare if bare else ():
        if labels:
            yield label(name, text, line(name), absent)
        else:
            yield _test("test", name, line(name), absent, name=name, paths=paths)
    if not names:
        yield from names_in_prose(text, place, absent)


def _test(
    kind: str, shown: str, place: Place, absent: bool, *, name: str, paths: tuple[PathName, ...] = ()
) -> Citation:
    return Citation(
        kind=kind, text=shown, name=name, place=place, paths=paths, expected_absent=absent, role="test"
    )


def _line_of(part: str, text: Text, place: Place) -> Place:
    """The line of a literal block that a part of it stands in; else the value's own place."""
    at = text.find(part) if text.is_block else -1
    if at < 0:
        return place
    return Place(line=place.line + 1 + text.count("\n", 0, at), column=1, key=place.key)


def _top_files(contract: Contract, absent: bool) -> Iterator[Citation]:
    for key, item in entries(contract.data.get("files"), "files"):
        if isinstance(item, Mapping) and isinstance(item.get("path"), Text):
            value = item["path"]
            assert isinstance(value, Text)
            yield from files_in(value, place_of(value, f"{key}.path"), absent, [], "location")
