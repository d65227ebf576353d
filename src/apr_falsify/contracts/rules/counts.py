"""Rules on figures: a stated count agrees with its list, a changelog with the version."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator

from apr_falsify.contracts.model import FALSIFIER_BLOCKS, Contract, entries, place_of
from apr_falsify.contracts.problem import Place, Problem, problem_at
from apr_falsify.contracts.rules.shape import version_key
from apr_falsify.contracts.source import Mapping, Sequence, Text, Value

_WORDS = {
    word: number
    for number, word in enumerate(
        """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty
    """.split()  # noqa: SIM905 - words read best as words
    )
}
_DIGITS = "[0-9]{1,9}"
_NUMBER = rf"{_DIGITS}|{'|'.join(_WORDS)}"
_THINGS = r"(?:points?|stages?|elements?|entries|items|variants|steps|values|cosines|names|capture\s+points)"
_LISTED_THINGS = ("element", "item", "stage", "point", "entry", "step", "name")
# "9-element cosine sequence [a, b, c]": the list follows within a few words
_COUNTED_LIST = re.compile(
    rf"\b(?P<count>{_NUMBER})[- ](?:{'|'.join(_LISTED_THINGS)})s?\b"
    r"[^\[\]\n.;:]{0,40}\s*\[(?P<list>[^\[\]]*)\]",
    re.IGNORECASE,
)
# "5 stages from parent contract: A, B, C, D, E"
_COUNT_COLON = re.compile(
    rf"^\s*(?P<count>{_NUMBER})\s+(?:[\w-]+\s+){{0,3}}?{_THINGS}\b"
    r"[^:,;.()\[\]]{0,40}:\s*(?P<list>[\w`'., -]+?)\s*\.?\s*$",
    re.IGNORECASE,
)
# "8 capture points, of which 2 are new": a whole count, standing first
_COUNT_ALONE = re.compile(
    rf"^\s*(?:exactly\s+|all\s+|the\s+)?(?P<count>{_NUMBER})\s+(?:[\w-]+\s+){{0,2}}?{_THINGS}\s*(?:$|[,;.(]|in\s+(?:total|all|order)\b)",
    re.IGNORECASE,
)
_FAR_OFF = 3  # a figure further from a list's length counts something else
_CHANGELOG = re.compile(
    r"^[ \t]*[-*]?[ \t]*\**v?(\d+\.\d+\.\d+)\**[ \t]*(?:\([^)\n]*\))?[ \t]*[:\u2014\u2013]", re.MULTILINE
)
_TOTALS = {
    "total_obligations": ("proof_obligations",),
    "total_proof_obligations": ("proof_obligations",),
    "obligation_count": ("proof_obligations",),
    "total_equations": ("equations",),
    "equation_count": ("equations",),
    **dict.fromkeys(
        (
            "total_falsifiers", "falsifier_count", "total_falsification_tests", "falsification_test_count",
            "num_falsifiers", "total_gates", "gate_count",
        ),
        FALSIFIER_BLOCKS,
    ),
}  # fmt: skip
_ALL_TESTS = re.compile(
    rf"\b(?:all|exactly)\s+(?P<count>{_NUMBER})\s+(?:falsification\s+tests|falsifiers|falsification\s+gates)\b",
    re.IGNORECASE,
)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else _WORDS[text.lower()]


def _items(text: str) -> list[str]:
    lines = (line.partition("#")[0] for line in text.splitlines())
    return [item for part in " ".join(lines).split(",") if (item := part.strip())]


def count_disagrees(contract: Contract) -> Iterator[Problem]:
    """A stated number of things equals the number that is listed."""
    for key, text, trail in _texts(contract.data):
        for match in _counted(text) if "[" in text or ":" in text else ():
            listed = _listed(match["list"])
            if listed and _number(match["count"]) != listed:
                place = place_of(text, _key(trail))
                yield _disagreement(contract, place, match.group(), _number(match["count"]), listed)
        if key in _TOTALS or key in ("pass_criteria", "falsification"):
            yield from _total(contract, key, text, place_of(text, _key(trail)))
    yield from _equation_counts(contract)


def _counted(text: Text) -> Iterator[re.Match[str]]:
    """Counts that stand with their list; the cheap tests first, since nearly every text has neither."""
    if "[" in text and "]" in text and _may_count_a_list(text):
        yield from _COUNTED_LIST.finditer(text)
    match = _COUNT_COLON.match(text) if ":" in text else None
    if match:
        yield match


def _may_count_a_list(text: str) -> bool:
    """Whether a counted thing stands near before a bracket: far cheaper to ask than the pattern."""
    heads = text.lower().split("[")[:-1]
    return any(thing in head.rstrip()[-60:] for head in heads for thing in _LISTED_THINGS)


def _listed(text: str) -> int:
    """How many names a written-out list has; 0 where it is no plain list (``...``, ranges, prose)."""
    items = _items(text)
    names = all(re.match(r"^[`'\"]?[A-Za-z_][\w.:()-]*[`'\"]?$", item) for item in items)
    return len(items) if names and len(items) > 1 and "..." not in text and "…" not in text else 0


def _disagreement(contract: Contract, place: Place, text: str, count: int, listed: int) -> Problem:
    shown = " ".join(text.split())
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    message = f"{shown!r} says {count}, {listed} are listed"
    return problem_at(
        contract.path,
        "count-disagrees",
        place,
        message,
        subject=shown,
        hint=f"write {listed}, or correct the list",
    )


def _equation_counts(contract: Contract) -> Iterator[Problem]:
    """``where: '8 capture points, ...'`` beside a formula that lists nine."""
    for key, equation in _equations(contract.data.get("equations")):
        listed = _formula_length(equation)
        for name in ("where", "note", "invariants"):
            for where, text in entries(equation.get(name), f"{key}.{name}"):
                match = _COUNT_ALONE.match(text) if isinstance(text, Text) else None
                if match and listed and 0 < abs(_number(match["count"]) - listed) <= _FAR_OFF:
                    place = place_of(text, where)
                    yield _disagreement(
                        contract, place, match.group().strip(" ,;.("), _number(match["count"]), listed
                    )


def _equations(value: Value) -> Iterator[tuple[str, Mapping]]:
    if isinstance(value, Mapping):
        items = [(f"equations.{name}", item) for name, item in value.items()]
    else:
        items = list(entries(value, "equations"))
    yield from ((key, item) for key, item in items if isinstance(item, Mapping))


def _formula_length(equation: Mapping) -> int:
    """Elements of the bracketed list that is the formula's right-hand side; 0 where there is none."""
    formula = equation.get("formula")
    match = re.match(r"^\s*\w+\s*=\s*\[(.*)\]\s*$", formula, re.DOTALL) if isinstance(formula, Text) else None
    if not match:
        return 0
    body, depth, commas = "\n".join(line.partition("#")[0] for line in match[1].splitlines()).strip(), 0, 0
    for char in body:
        depth += (char in "([{") - (char in ")]}")
        commas += char == "," and depth == 0
    return commas + (not body.endswith(",")) if commas else 0


def _total(contract: Contract, key: str, text: Text, place: Place) -> Iterator[Problem]:
    """``total_obligations: 4`` and "All 2 falsification tests pass"."""
    blocks, count = _TOTALS.get(key, ()), int(text) if re.fullmatch(_DIGITS, text) else -1
    match = _ALL_TESTS.search(text) if not blocks else None
    if match:
        blocks, count = FALSIFIER_BLOCKS, _number(match["count"])
    listed = _length(contract, blocks)
    if listed is None and key in _TOTALS and count > 0 and blocks != FALSIFIER_BLOCKS:
        listed = 0
    if count >= 0 and listed is not None and count != listed:
        message = f"{key} says {count}, there are {listed}"
        yield problem_at(
            contract.path, "count-disagrees", place, message, subject=key, hint=f"write {listed}"
        )


def _length(contract: Contract, blocks: tuple[str, ...]) -> int | None:
    values = [contract.data.get(block) for block in blocks]
    present = [value for value in values if isinstance(value, Mapping | Sequence)]
    return sum(len(value) for value in present) if present else None


_Trail = tuple["_Trail | None", str | int]


def texts_of(data: Mapping) -> Iterator[tuple[str, Text, Callable[[], str]]]:
    """Every text, the key it stands under, and its key path, which is joined only where it is asked for."""
    for key, text, trail in _texts(data):
        yield key, text, functools.partial(_key, trail)


def _texts(data: Mapping) -> Iterator[tuple[str, Text, _Trail | None]]:
    """Every text, the key it stands under, and the way to it."""
    pending: list[tuple[Value, str, _Trail | None]] = [(data, "", None)]
    while pending:
        value, last, trail = pending.pop()
        kind = type(value)
        if kind is Text:
            yield last, value, trail  # type: ignore[misc]  # type() is faster than isinstance, mypy blind
        elif isinstance(value, Mapping):
            pending.extend([(item, name, (trail, name)) for name, item in value.items()])
        elif isinstance(value, Sequence):
            pending.extend([(item, last, (trail, at)) for at, item in enumerate(value)])


def _key(trail: _Trail | None) -> str:
    parts: list[str] = []
    while trail:
        trail, part = trail
        parts.append(f"[{part}]" if isinstance(part, int) else f".{part}")
    return "".join(reversed(parts)).lstrip(".")


def changelog_version(contract: Contract) -> Iterator[Problem]:
    """Where the description keeps a changelog, its newest entry is the contract's version."""
    logged = [version_key(found) for found in _CHANGELOG.findall(contract.description)]
    own = version_key(contract.version)
    if not logged or not own or max(logged) == own:
        return
    if own > max(logged) and re.search(
        rf"\bv?{re.escape(contract.version.lstrip('v'))}\b", contract.description
    ):
        return  # a folded description runs its entries together: it is there, not at a line's start
    newest = ".".join(map(str, max(logged)))
    value = contract.metadata.get("version") or contract.data.get("version")
    place = place_of(value, "metadata.version")
    message = f"version is {contract.version}, the newest changelog entry is {newest}"
    hint = "add the missing changelog line" if own > max(logged) else f"write version {newest}"
    yield problem_at(contract.path, "changelog-version", place, message, subject=contract.id, hint=hint)
