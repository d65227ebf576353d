"""How well names go with places. It only decides between arrays of equal values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

from apr_falsify.matching.forms import StagePlace

Likeness = Callable[[str, str], float]
"""How like a name (with ``{layer}`` for its layer) is to those that programs give a stage, 0 to 1."""

_NUMBER = re.compile(r"[0-9]{1,9}")


class NamePreference:
    """Prefers a name that is called as in other layers, then one that programs give the place.

    Args:
        likeness: of a name and a stage; ``None`` where nothing is known of names.

    """

    def __init__(self, likeness: Likeness | None = None) -> None:
        self._likeness = likeness
        self._seen: dict[tuple[str, str], Counter[str]] = {}
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, name: str, place: StagePlace) -> float:
        """Return a number, more for a better name."""
        seen = self._seen.get((place.key.stage, place.part), Counter())
        return 2.0 * (seen[template(name)] > 0) + self._like(name, place)

    def note(self, name: str, place: StagePlace) -> None:
        """Remember that a place was called so."""
        self._seen.setdefault((place.key.stage, place.part), Counter())[template(name)] += 1

    def _like(self, name: str, place: StagePlace) -> float:
        if self._likeness is None:
            return 0.0
        layer = "" if place.key.layer is None else str(place.key.layer)
        pattern = re.sub(rf"(?<![0-9]){layer}(?![0-9])", "{layer}", name, count=1) if layer else name
        target = f"{place.key.stage}.{place.part}" if place.part else place.key.stage
        if (pattern, target) not in self._known:
            self._known[pattern, target] = self._likeness(pattern, target)
        return self._known[pattern, target]


def template(name: str) -> str:
    """Return a name without its numbers."""
    return _NUMBER.sub("#", name)


def pattern_of(names: Mapping[int, str]) -> str | None:
    """Return the pattern with ``{layer}`` that gives the names of these layers, ``None`` where none does.

    Args:
        names: layer -> name, of two layers or more.

    """
    if len({template(name) for name in names.values()}) > 1 or any(
        "{" in name or "}" in name for name in names.values()
    ):
        return None
    spans = {layer: list(_NUMBER.finditer(name)) for layer, name in names.items()}
    first = next(iter(names))
    pattern, end = "", 0
    fields = 0
    for index, match in enumerate(spans[first]):
        digits = {layer: found[index][0] for layer, found in spans.items()}
        word = match[0]
        if len(set(digits.values())) > 1:
            field = _field(digits)
            if field is None:
                return None
            word, fields = field, fields + 1
        pattern += names[first][end : match.start()] + word
        end = match.end()
    return pattern + names[first][end:] if fields else None


def _field(digits: Mapping[int, str]) -> str | None:
    offsets = {int(text) - layer for layer, text in digits.items()}
    if len(offsets) > 1:
        return None
    (offset,) = offsets
    width = min(len(text) for text in digits.values())
    padded = any(text.startswith("0") and len(text) > 1 for text in digits.values())
    form = f":0{width}" if padded else ""
    if (
        any(text != f"{int(text):0{width if padded else 1}d}" for text in digits.values())
        or abs(offset) > 999
    ):
        return None
    return f"{{layer{f'{offset:+d}' if offset else ''}{form}}}"
