"""The words of a whole tree: which files hold a name, and which names are most like one that is nowhere."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from apr_falsify.symbols.store import SourceStore, thaw

_WORD = re.compile(rb"[A-Za-z_]\w*")
_DEFINES = re.compile(
    rb"\b(?:fn|def|class|struct|enum|trait|const|static|type|macro_rules!)\s+(?:ref\s+|mut\s+)?([A-Za-z_]\w*)"
)
_MOST_BYTES = 4 * 2**20
_OF_EVERY_TEST = frozenset(("test", "tests", "falsify", "prop"))
"""Words that tell nothing of what a test is about."""


def read_words(source: bytes) -> tuple[bytes, bytes]:
    """Return the words of a file, and those after a word that defines; each list one word a line."""
    defined = set(_DEFINES.findall(source))
    return b"\n".join(set(_WORD.findall(source)) - defined), b"\n".join(defined)


class Vocabulary:
    """The words of the files of one tree, each file read once.

    Args:
        root: of the tree.
        files: its sources, relative to the root.
        store: keeps the words of each content.

    """

    def __init__(self, root: Path, files: list[str], store: SourceStore) -> None:
        self._files = files
        numbers = {f"{root}/{file}": at for at, file in enumerate(files)}
        self._places: dict[bytes, list[int]] = {}
        self._defined: Counter[bytes] = Counter()
        for path, key in store.prepare("words", list(numbers), read_words, _MOST_BYTES):
            number = numbers[path]
            other, defined = thaw(store.known[key])
            self._defined.update(defined.split(b"\n"))
            for word in (*other.split(b"\n"), *defined.split(b"\n")):
                self._places.setdefault(word, []).append(number)
        self._names: list[str] | None = None
        self._frequency: Counter[str] | None = None
        self._prepared: dict[int, tuple[list[str], _Candidates]] = {}

    def files_with(self, name: str) -> list[str]:
        """Files in which ``name`` stands as a word."""
        return [self._files[at] for at in sorted(self._places.get(name.encode(), ()))]

    @property
    def defined(self) -> list[str]:
        """Every name that stands behind a word that defines, in one list that is made once."""
        if self._names is None:
            self._names = sorted(word.decode("utf-8", "replace") for word in self._defined if word)
        return self._names

    @property
    def frequency(self) -> Counter[str]:
        """How many names that are defined hold a word: ``parse_stage_list`` holds three."""
        if self._frequency is None:
            self._frequency = Counter(token for name in self.defined for token in tokens(name))
        return self._frequency

    def nearest(self, name: str, candidates: list[str], *, limit: int = 4) -> list[str]:
        """``candidates`` most like ``name``: near spellings first, then those sharing its rarest word.

        A name that was made up shares few letters with what was meant, but its rarest word, rare in the
        whole tree, is the one that tells what it was about.
        """
        held = self._prepared.get(id(candidates))
        if held is None:
            if len(self._prepared) > 8:
                self._prepared.clear()
            held = self._prepared[id(candidates)] = (candidates, _Candidates(candidates))
        return held[1].nearest(name, self.frequency, limit)


class _Candidates:
    """Names that may have been meant, arranged by the words they hold."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(dict.fromkeys(names))
        self._holding: dict[str, list[str]] = {}
        for name in self._names:
            for token in tokens(name):
                self._holding.setdefault(token, []).append(name)

    def nearest(self, name: str, frequency: Counter[str], limit: int) -> list[str]:
        from rapidfuzz import fuzz, process

        alike = process.extract(name, self._names, scorer=fuzz.ratio, score_cutoff=60.0, limit=8 * limit)
        spelt = [one for one, score, _ in alike[:1] if score >= 80]
        telling = (token for token in tokens(name) if len(token) > 1 and token not in _OF_EVERY_TEST)
        weight = {token: 1 / math.log(2 + frequency[token]) for token in telling}
        points: dict[str, float] = {one: 0.0 for one, _, _ in alike}
        for token in sorted(weight, key=lambda one: (-weight[one], one)):
            for one in self._holding.get(token, ()):
                points[one] = max(points.get(one, 0.0), weight[token])
            if len(points) >= 400:
                break  # the rest share commoner words only
        scored = sorted(((share, fuzz.ratio(name, one), one) for one, share in points.items()), reverse=True)
        return list(dict.fromkeys([*spelt, *(one for _, _, one in scored)]))[:limit]


def close_matches(name: str, candidates: Iterable[str], count: int, least: float) -> list[str]:
    """Return the ``count`` candidates spelt most like ``name``, none that is alike by less than ``least``."""
    from rapidfuzz import fuzz, process

    found = process.extract(name, list(candidates), scorer=fuzz.ratio, score_cutoff=100 * least, limit=count)
    return [one for one, _, _ in found]


def tokens(name: str) -> set[str]:
    """Words of an identifier: ``parse_stage_list`` and ``ParseStageList`` alike."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}
