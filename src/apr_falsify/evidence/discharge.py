"""Whether a lane is the one that a contract's ``discharge`` block names, word by word.

``unknown`` satisfies nothing, and a word that bundles do not record counts as unmet. A version is a range in
the form of PEP 440.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from apr_falsify.evidence.facts import EMBEDDED_LANE, LaneFacts, Side
from apr_falsify.portable import is_hub_id

UNKNOWN = "unknown"

_ALIASES = {
    "transformers": "hf",
    "huggingface": "hf",
    "float16": "f16",
    "half": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
}
"""Words that mean another one of the same column."""

_OF_LANE: Mapping[str, Callable[[LaneFacts], str | None]] = {
    "lane": lambda lane: lane.name,
    "model": lambda lane: lane.oracle.model if lane.oracle else None,
    "prompt": lambda lane: lane.prompt,
    "layers": lambda lane: f"{lane.layers[0]}..{lane.layers[1]}" if lane.layers else None,
    "tokens": lambda lane: ",".join(map(str, lane.tokens)) or None,
}
_OF_SIDE = ("runtime", "version", "device", "dtype", "model", "model_sha256", "binary_sha256")
_SIDES = ("oracle", "subject")


def unmet(discharge: Mapping[str, Any], lane: LaneFacts) -> Iterator[str]:
    """Yield a line for each word of ``discharge`` that ``lane`` does not satisfy, with both values."""
    for word, wanted in _words(discharge, ""):
        got = _answer(word, lane)
        if not _satisfies(word, got, wanted):
            yield f"{word} is {got or UNKNOWN}, expected {wanted}{_hint(word, got, wanted, lane)}"


def _words(block: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """``subject: {device: x}`` and ``subject_device: x`` are one word, ``subject.device``."""
    for key, value in block.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _words(value, f"{name}.")
        elif isinstance(value, list):
            yield name, ",".join(str(one).strip() for one in value)
        else:
            yield re.sub(r"^(oracle|subject)_", r"\1.", name), str(value).strip()


def _answer(word: str, lane: LaneFacts) -> str | None:
    if word in _OF_LANE:
        return _OF_LANE[word](lane)
    side_name, _, field = word.partition(".")
    if side_name not in _SIDES or field not in _OF_SIDE:
        return None
    side: Side | None = lane.oracle if side_name == "oracle" else lane.subject
    return getattr(side, field) if side else None


def _hint(word: str, got: str | None, wanted: str, lane: LaneFacts) -> str:
    """Say what to give in place of a folder, which does not say whose model it holds."""
    if word not in ("model", "oracle.model") or lane.name == EMBEDDED_LANE or not got or is_hub_id(got):
        return ""
    digest = lane.oracle.model_sha256 if lane.oracle else None
    by_weights = f"let discharge name oracle.model_sha256: {digest} in place of it" if digest else ""
    if not is_hub_id(wanted):
        return by_weights and f". Where a model lies does not say which it is: {by_weights}"
    return (
        f". A path outside huggingface_hub's cache does not say whose model it is: hf download {wanted}, and "
        f"give that id, --oracle-model={wanted}, without a network under HF_HUB_OFFLINE=1"
        + (by_weights and f"; or {by_weights}")
    )


def _satisfies(word: str, got: str | None, wanted: str) -> bool:
    if not got or not wanted or UNKNOWN in (got.lower(), wanted.lower()):
        return False
    if word.endswith(".version"):
        return _in_range(got, wanted)
    if word == "layers":
        return _holds(got, wanted)
    if word in ("prompt", "model") or word.endswith((".model", "_sha256")):
        return got == wanted
    if word.endswith(".device") and got.lower().startswith(f"{wanted.lower()}:"):
        return True  # cuda:0 is a cuda
    return _known_as(got) == _known_as(wanted)


def _known_as(word: str) -> str:
    return _ALIASES.get(word.lower(), word.lower())


def _holds(got: str, wanted: str) -> bool:
    """Whether the layers that ran are at least those that are requested; ``A..B`` ends before B."""
    ran, asked = (re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", one) for one in (got, wanted))
    if ran is None or asked is None:
        return False
    return int(ran[1]) <= int(asked[1]) < int(asked[2]) <= int(ran[2])


def _in_range(got: str, wanted: str) -> bool:
    """``apr 0.72.3`` is in ``>=0.72``; a bare version asks for itself."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    found = re.search(r"\d+(?:\.\d+)*\S*", got)
    try:
        asked = SpecifierSet(f"=={wanted}" if wanted[:1].isdigit() else wanted)
        return found is not None and asked.contains(Version(found[0]), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return False
