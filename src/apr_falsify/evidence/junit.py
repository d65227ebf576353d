"""``junit.xml`` of a bundle: the falsifier's tests in the format that CI systems read, and back.

Classname and name are those that pytest writes for a node id (``_pytest/junitxml.py``: the file with dots
for slashes, then the classes; the last part is the name, with its parameters).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence

from apr_falsify.evidence.outcome import Ended, TestRecord

Case = tuple[str, str, str]
"""A test as junit tells it: classname, name, and ``passed``, ``failed``, ``error`` or ``skipped``."""

_CHILD: dict[Ended, str] = {
    Ended.FAILED: "failure",
    Ended.ERROR: "error",
    Ended.SKIPPED: "skipped",
    Ended.XFAILED: "skipped",
}
_ENDED = {"failure": "failed", "error": "error", "skipped": "skipped"}
_NEVER_RAN = (Ended.DESELECTED, Ended.UNCOLLECTED, Ended.UNFINISHED)
"""A test that ended so need not be in ``junit.xml``: pytest writes none that it did not report."""


def junit_xml(
    tests: Iterable[TestRecord],
    *,
    suite: str,
    created: str,
    properties: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> str:
    """Return the JUnit XML of ``tests``; the same tests and time give the same text.

    Args:
        tests: the tests; those that never ran are left out, as pytest does.
        suite: name of the test suite.
        created: ISO 8601 time that is put on it.
        properties: a test's name -> what it recorded, name and value.

    """
    recorded = properties or {}
    cases = [_element(one, recorded.get(one.name, ())) for one in tests if one.ended not in _NEVER_RAN]
    counts = {child: sum(case.find(child) is not None for case in cases) for child in _ENDED}
    root = ElementTree.Element("testsuites", {"name": "apr-falsify"})
    attributes = {
        "name": suite,
        "tests": str(len(cases)),
        "failures": str(counts["failure"]),
        "errors": str(counts["error"]),
        "skipped": str(counts["skipped"]),
        "timestamp": created,
    }
    ElementTree.SubElement(root, "testsuite", attributes).extend(cases)
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _element(one: TestRecord, properties: Sequence[tuple[str, str]]) -> ElementTree.Element:
    classname, name = address(one.name)
    attributes = {"classname": classname, "name": _clean(name), "time": f"{one.seconds:.3f}"}
    element = ElementTree.Element("testcase", attributes)
    if properties:
        holder = ElementTree.SubElement(element, "properties")
        for key, value in properties:
            ElementTree.SubElement(holder, "property", {"name": _clean(key), "value": _clean(value)})
    if one.ended in _CHILD:
        child = ElementTree.SubElement(element, _CHILD[one.ended], {"message": _clean(one.reason)})
        if one.ended is Ended.XFAILED:
            child.set("type", "pytest.xfail")
    return element


def _clean(value: str) -> str:
    """Without what XML 1.0 cannot hold, written ``#xNN`` as pytest does."""
    return "".join(c if _is_xml(ord(c)) else f"#x{ord(c):02X}" for c in value)


def _is_xml(code: int) -> bool:
    return code in (9, 10, 13) or 32 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or code >= 0x10000


def address(node: str) -> tuple[str, str]:
    """Return the classname and the name that pytest's JUnit XML gives a node id."""
    path, bracket, parameters = node.partition("[")
    file, *names = path.split("::")
    first = file.replace("/", ".").removesuffix(".py")
    *classes, name = (first, *names)
    return ".".join(classes), name + bracket + parameters


def read_junit(data: bytes) -> list[Case]:
    """Return the tests of a JUnit XML.

    Raises:
        ValueError: it is no XML, has a document type (which may hold entities without end), or more tags and
            attributes than any run of tests has.

    """
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error}") from error
    if "<!DOCTYPE" in content or "<!ENTITY" in content:
        raise ValueError("it has a document type, which no JUnit XML needs")
    if content.count("<") + content.count("=") > _MOST_MARKS:
        raise ValueError(f"it has more than {_MOST_MARKS} tags and attributes")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"it is no XML: {error}") from error
    return list(_cases(root))


_MOST_MARKS = 200_000
"""Tags and attributes, each some 250 bytes of memory; a test has ten."""


def _cases(root: ElementTree.Element) -> Iterator[Case]:
    for case in root.iter("testcase"):
        ended = next((_ENDED[child.tag] for child in case if child.tag in _ENDED), "passed")
        yield case.get("classname", ""), case.get("name", ""), ended


def disagreements(tests: Iterable[TestRecord], cases: Iterable[Case]) -> list[str]:
    """Say where the tests of a bundle and its JUnit XML disagree; empty where they do not."""
    told = sorted(cases)
    expected = sorted(_case(one) for one in tests if one.ended not in _NEVER_RAN)
    not_run = {_case(one)[:2] for one in tests if one.ended in _NEVER_RAN}
    extra = [case for case in told if case not in expected and case[:2] not in not_run]
    lacking = [case for case in expected if case not in told]
    words = [f"has {name} as {ended}, bundle.json has not" for _, name, ended in extra]
    words += [f"has not {name} as {ended}, bundle.json has" for _, name, ended in lacking]
    if not words and len([case for case in told if case[:2] not in not_run]) != len(expected):
        words.append("names a test twice")
    return words


def _case(one: TestRecord) -> Case:
    classname, name = address(one.name)
    return classname, _clean(name), _ENDED.get(_CHILD.get(one.ended, ""), "passed")
