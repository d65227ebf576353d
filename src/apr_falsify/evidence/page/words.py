"""The sentences of a page: the verdict, what was not checked, how both sides answer to a name."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from apr_falsify.compare.bisection import FindingType, Kind, Status
from apr_falsify.evidence.page.view import Found, PageRow, PageView, RowState
from apr_falsify.model.stages import Key
from apr_falsify.traces.provenance import Provenance

BADGES: Mapping[Kind, tuple[str, str]] = {
    Kind.CONSISTENT: ("good", "consistent"),
    Kind.LOCALISED: ("bad", "localised"),
    Kind.SEVERAL: ("bad", "several sources"),
    Kind.LAYOUT_MISMATCH: ("warn", "layout mismatch"),
    Kind.REFERENCE_SUSPECT: ("warn", "reference suspect"),
    Kind.UNMEASURED: ("warn", "unmeasured"),
}
"""Kind -> colour class and the word beside it."""

STATES: Mapping[RowState, tuple[str, str]] = {
    RowState.SOURCE: ("!", "wrong"),
    RowState.INHERITS: ("~", "inherits"),
    RowState.LAYOUT: ("=", "other layout"),
    RowState.UNMEASURED: ("?", "not judged"),
    RowState.ABSENT: ("x", "missing"),
    RowState.RIGHT: ("", "right"),
}
"""State -> its mark, as in the terminal, and its word."""

LEGEND: Mapping[RowState, str] = {
    RowState.SOURCE: "is not what its inputs make it: the error comes in here",
    RowState.INHERITS: "differs from the reference, as its inputs do; adds nothing of its own",
    RowState.LAYOUT: "is equal in another layout",
    RowState.UNMEASURED: "could not be judged",
    RowState.ABSENT: "was not captured on one side",
    RowState.RIGHT: "is what its inputs make it, to within rounding",
}

_MISSING: Mapping[Status, str] = {
    Status.MISSING_IN_SUBJECT: "missing in the subject",
    Status.MISSING_IN_ORACLE: "missing in the reference",
}


def state_word(row: PageRow) -> str:
    """Return the verdict on a row, in one to four words."""
    return _MISSING.get(row.status, STATES[row.state][1])


def headline(view: PageView) -> str:
    """Return the verdict in a sentence or two that need no other word of the page."""
    return _HEADLINES[view.kind](view)


def _consistent(view: PageView) -> str:
    count = sum(row.accumulated is not None for row in view.rows)
    said = f"No stage introduces an error: {count} stages are what their inputs make them, to within rounding"
    return f"{said}.{_besides(view)}"


def _besides(view: PageView) -> str:
    """Say what else differs where no stage is a source: it makes the verdict all the same."""
    others = dict.fromkeys(_BESIDES[found.type] for found in view.findings if found.type in _BESIDES)
    return f" But {joined(others)}." if others else ""


_BESIDES: Mapping[FindingType, str] = {
    FindingType.TOKENIZER: "the two sides' tokenizers give other tokens for the prompt",
    FindingType.GEOMETRY: "the two models are not of one geometry",
    FindingType.ARITHMETIC: "the subject computes in another arithmetic than expected",
}


def _localised(view: PageView) -> str:
    if len(view.sources) > 1:
        return _one_cause(view)
    (source,) = view.sources or (None,)
    if source is None:
        return "One stage introduced the error."
    return f"{_accusation(source)} {_around(view, source)}".strip()


def _accusation(source: Found) -> str:
    where = f"Layer {source.layer}'s " if source.layer is not None else "The model's "
    if len(source.stages) > 1:
        what = f"{where}{joined(source.stages, 'or')} is wrong (which of them is not known)"
    else:
        what = f"{where}{joined(source.stages)} is wrong"
    if source.type is FindingType.WEIGHTS:
        return f"{what}: the subject's weight is not the reference's."
    return (
        f"{what}: {_explains(source.cause)}."
        if source.cause
        else f"{what}: it is not what its inputs make it."
    )


def _explains(cause: str) -> str:
    return f"“{cause}” explains all of its error"


def _around(view: PageView, source: Found) -> str:
    """Say what comes before and after the source: right, in error, or not known."""
    places = [index for index, row in enumerate(view.rows) if _is_at(row, source)]
    if not places:
        return ""
    before = [row for row in view.rows[: places[0]] if row.state is not RowState.ABSENT]
    after = [row for row in view.rows[places[-1] + 1 :] if row.state is not RowState.ABSENT]
    said = [part for part in (_before(before), _after(after)) if part]
    return f"{'; '.join(said)[:1].upper()}{'; '.join(said)[1:]}." if said else ""


def _is_at(row: PageRow, source: Found) -> bool:
    return row.layer == source.layer and row.stage in source.stages


def _before(rows: Sequence[PageRow]) -> str:
    unknown = sum(row.state is RowState.UNMEASURED for row in rows)
    if not rows:
        return ""
    if unknown:
        return f"of the {len(rows)} stages before it, {unknown} could not be judged"
    right = all(row.state is RowState.RIGHT for row in rows)
    return "everything before it is right" if right else ""


def _after(rows: Sequence[PageRow]) -> str:
    inherit = sum(row.state is RowState.INHERITS for row in rows)
    unknown = sum(row.state is RowState.UNMEASURED for row in rows)
    if not rows:
        return ""
    if unknown:
        return f"of the {len(rows)} stages after it {inherit} inherit it, and {unknown} could not be judged"
    if inherit == 0:
        return "nothing after it shows it"
    if inherit == len(rows):
        return "everything after it inherits it"
    return f"of the {len(rows)} stages after it {inherit} inherit it, and none adds an error of its own"


def _one_cause(view: PageView) -> str:
    causes = {source.cause for source in view.sources}
    if len(causes) > 1 or "" in causes:
        return _several(view)
    within = [source for source in view.sources if source.layer is not None]
    layers = sorted({source.layer for source in within if source.layer is not None})
    stages = list(dict.fromkeys(name for source in within for name in source.stages))
    whole = dict.fromkeys(name for source in view.sources if source.layer is None for name in source.stages)
    places = [*([f"{joined(stages)}{_of_layers(layers)}"] if stages else []), *whole]
    return f"One cause, “{causes.pop()}”, explains all of the errors: {'; '.join(places)}."


def _several(view: PageView) -> str:
    layers: dict[str, list[int | None]] = {}
    for source in view.sources:
        layers.setdefault(", ".join(source.stages), []).append(source.layer)
    names: dict[str, list[str]] = {}
    for name, found in layers.items():
        names.setdefault(_of_layers(found), []).append(name)
    told = [f"{joined(group)}{where}" for where, group in names.items()]
    shown = [*told[:_MOST_NAMED], *([f"{len(told) - _MOST_NAMED} more"] if len(told) > _MOST_NAMED else [])]
    causes = {source.cause for source in view.sources}
    said = f"{len(view.sources)} stages are wrong, each by itself: {'; '.join(shown)}."
    if len(causes) == 1 and "" not in causes:
        said += f" In each of them {_explains(causes.pop())}."
    return said


_MOST_NAMED = 4


def _of_layers(layers: Sequence[int | None]) -> str:
    known = [layer for layer in layers if layer is not None]
    return f" of layer{'s' if len(known) > 1 else ''} {ranges(known)}" if known else ""


def _layout(view: PageView) -> str:
    stages = dict.fromkeys(
        name for each in view.findings if each.type is FindingType.LAYOUT for name in each.stages
    )
    verb = "are" if len(stages) > 1 else "is"
    return (
        f"Nothing is computed wrongly, but {joined(stages) or 'a stage'} {verb} not stored as the runtime "
        "declares: under a named transformation both sides are equal."
    )


def _reference(view: PageView) -> str:
    found = next((each for each in view.findings if each.type is FindingType.REFERENCE), None)
    where = "" if found is None else f", first in {place(Key(found.layer, joined(found.stages)))}"
    return f"The subject cannot be judged: the reference itself is not what its own inputs make it{where}."


def _unmeasured(view: PageView) -> str:
    lacking = (FindingType.UNMEASURED, FindingType.NOT_THE_SUBJECTS_WEIGHTS)
    found = next((each for each in view.findings if each.type in lacking), None)
    why = "nothing could be judged" if found is None else _reason(found)
    return f"No stage in error was found, but this is no all-clear: {why}.{_besides(view)}"


def _reason(found: Found) -> str:
    names = joined(found.stages)
    told = found.explanation.removeprefix(f"{', '.join(found.stages)}: ")
    if told == found.explanation or not names:
        return told
    return f"{names}{_of_layers([found.layer])} could not be judged ({told})"


_HEADLINES: Mapping[Kind, Callable[[PageView], str]] = {
    Kind.CONSISTENT: _consistent,
    Kind.LOCALISED: _localised,
    Kind.SEVERAL: _several,
    Kind.LAYOUT_MISMATCH: _layout,
    Kind.REFERENCE_SUSPECT: _reference,
    Kind.UNMEASURED: _unmeasured,
}


def unchecked(view: PageView) -> list[str]:
    """Return everything that was not looked at or could not be judged, one thing an entry."""
    said = list(view.not_checked)
    for status, word in _MISSING.items():
        stages: dict[str, list[int | None]] = {}
        for row in view.rows:
            if row.status is status:
                stages.setdefault(row.stage, []).append(row.layer)
        said += [f"{name}{_of_layers(layers)}: {word}" for name, layers in stages.items()]
    unknown = [row for row in view.rows if row.state is RowState.UNMEASURED]
    if unknown:
        said.append(f"could not be judged: {joined(dict.fromkeys(place(row.key) for row in unknown))}")
    return said


_LONGEST = 110
_MOST_SHOWN = 3


def unchecked_sentence(said: Sequence[str]) -> str:
    """Return :func:`unchecked` as a sentence; what is too long for one is reported further down the page."""
    if not said:
        return "Nothing that was requested was left out."
    shown = [shortened(each) for each in said[:_MOST_SHOWN]]
    more = len(said) - _MOST_SHOWN
    return f"Not checked: {'; '.join(shown)}{f'; and {more} more' if more > 0 else ''}."


def shortened(told: str) -> str:
    """Return ``told``, cut where it is too long for a sentence; runs of numbers become ranges first."""
    told = _RUN.sub(_as_range, told)
    return told if len(told) <= _LONGEST else told[: _LONGEST - 1].rstrip(" ,;") + "…"


def _as_range(match: re.Match[str]) -> str:
    numbers = [int(each) for each in match[0].split(", ")]
    ascending = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"{numbers[0]} to {numbers[-1]}" if ascending else match[0]


_RUN = re.compile(r"\b\d{1,9}(?:, \d{1,9}){2,}\b")


def place(key: Key) -> str:
    """Return a stage in words."""
    layer, name = key
    return name if layer is None else f"layer {layer} {name}"


def joined(words: Iterable[str], last: str = "and") -> str:
    """Return ``a, b and c``."""
    *most, end = [*words] or [""]
    return f"{', '.join(most)} {last} {end}" if most else end


def ranges(numbers: Iterable[int]) -> str:
    """Return ``0 to 4, 7`` for 0, 1, 2, 3, 4, 7."""
    parts = []
    for _, group in itertools.groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0]):
        run = [value for _, value in group]
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(value) for value in run]
    return joined(parts)


def sentence(told: str) -> str:
    """Return ``told`` as a sentence: a capital, unless it begins with a name of code, and a full stop."""
    first = told.partition(" ")[0]
    start = told[:1].upper() + told[1:] if first.rstrip(",:").isalpha() else told
    return start if start.endswith((".", "!", "?")) else f"{start}."


def side(provenance: Provenance) -> str:
    """Return who computed a side, in a few words."""
    words = [provenance.runtime, provenance.version, provenance.dtype, f"on {provenance.device}"]
    return " ".join(word for word in words if "unknown" not in word)


def figure(value: float | None, form: str = ".1e") -> str:
    """Return a number, by default with two digits and an exponent where it needs one; a dash for none."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    if not form.endswith("e"):
        return format(value, form)
    if form == ".1e" and 0.01 <= abs(value) < 1000:
        return format(value, ".2g" if abs(value) < 100 else ".0f")
    return "0" if value == 0 else _EXPONENT.sub(r"e\1", format(value, form))


_EXPONENT = re.compile(r"e\+?(-?)0*(?=\d)")
