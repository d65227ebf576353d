"""Which array of a foreign recording may be which stage: by shape, by name, by value where an oracle is.

Nothing here is believed: the result is a file of proposals, each with what supports it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apr_falsify.commands.starter_names import ALIKE, UNMISTAKABLE, likeness
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key, Scope
from apr_falsify.operators.heads import parts
from apr_falsify.subjects.array_axes import as_sized, rearranged
from apr_falsify.subjects.foreign import BF16_BITS, Dump, ForeignArray
from apr_falsify.subjects.mapped_arrays import FLOATS, WHOLE
from apr_falsify.subjects.mapping import QKV_PARTS, canonical_axes, factors

F64 = npt.NDArray[np.float64]

SAME = 1e-2
"""1 - cosine up to which an array is taken to hold the oracle's stage: a 4-bit runtime stays below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Arrays of one name but for the layer.

    Attributes:
        pattern: the name, ``{layer}`` for the layer.
        arrays: layer (``None`` where the name has none) -> array.

    """

    pattern: str
    arrays: Mapping[int | None, ForeignArray]

    @property
    def names(self) -> frozenset[str]:
        """The arrays' names."""
        return frozenset(array.name for array in self.arrays.values())

    @property
    def layer(self) -> int | None:
        """The lowest layer."""
        return min(self.arrays, key=lambda layer: -1 if layer is None else layer)

    @property
    def first(self) -> ForeignArray:
        """The array of the lowest layer."""
        return self.arrays[self.layer]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePart:
    """A stage, or the q, k or v of one.

    Attributes:
        stage: the stage.
        part: 0, 1 or 2 for q, k or v, ``None`` for the whole.
        unbiased: whether the model's q, k and v have no bias, so that their bare names mean the product.

    """

    stage: str
    part: int | None = None
    unbiased: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        """Its canonical axes."""
        return canonical_axes(self.stage) if self.part is None else QKV_PARTS[self.part]

    @property
    def what(self) -> str:
        """The place in words, which is its row among the hints too."""
        return self.stage if self.part is None else f"{self.stage}.{'qkv'[self.part]}"

    def likeness(self, pattern: str) -> float:
        """Return how like the name is to those that programs give the stage."""
        names = (self.what, self.what.replace("qkv_matmul", "qkv_bias") if self.unbiased else self.what)
        return max(likeness(pattern, name) for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """An array whose name says one stage and whose values are the oracle's of another.

    Attributes:
        by_name: what its name says.
        by_value: what its values say.

    """

    by_name: Match
    by_value: Match


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A candidate proposed for a place.

    Attributes:
        candidate: the arrays.
        place: what they may be.
        axes: every order of axes that the shape allows, the most usual first.
        likeness: of the names, 0 to 1.
        cosine: with the oracle's stage, per order of axes; empty without an oracle.

    """

    candidate: Candidate
    place: StagePart
    axes: tuple[tuple[str, ...], ...]
    likeness: float
    cosine: tuple[float, ...] = ()

    @property
    def best(self) -> float | None:
        """The greatest cosine, ``None`` without an oracle."""
        return max(self.cosine, default=None)

    @property
    def by_value(self) -> bool:
        """Whether the values are the oracle's in one order of axes or another."""
        return self.best is not None and 1 - self.best <= SAME

    def rank(self) -> tuple[float, ...]:
        """Sort first what is surest: values to the decade, then the name."""
        if self.by_value and self.best is not None:
            return 0, round(math.log10(max(1 - self.best, 1e-10)) / 2), -self.likeness, -self.best
        return 1, 0, -self.likeness, -(self.best or 0)


_NUMBER = re.compile(r"(?<![0-9])[0-9]{1,9}(?![0-9])")


def candidates(dump: Dump, layers: int | None) -> list[Candidate]:
    """Return the arrays of ``dump``, those of one name but for the layer together.

    Of several numbers in a name that one is the layer which most names have in their place. Where layers
    are counted from 1, or from the embedding as 0 (one more than ``layers``), the pattern says ``{layer+1}``.
    """
    shared = Counter(name[: match.start()] for name in dump for match in _NUMBER.finditer(name))
    groups: dict[tuple[str, str], dict[str, ForeignArray]] = {}
    alone: list[Candidate] = []
    for name, array in dump.items():
        spans = list(_NUMBER.finditer(name))
        if not spans:
            alone.append(Candidate(pattern=name, arrays={None: array}))
            continue
        at = max(spans, key=lambda match: (shared[name[: match.start()]], -match.start()))
        groups.setdefault((name[: at.start()], name[at.end() :]), {})[at[0]] = array
    return [*alone, *(each for key, group in groups.items() for each in _counted(*key, group, layers))]


def _counted(
    before: str, after: str, group: Mapping[str, ForeignArray], layers: int | None
) -> Iterator[Candidate]:
    if len(group) == 1 or len({array.shape for array in group.values()}) > 1:  # the number may be no layer
        yield from (Candidate(pattern=array.name, arrays={None: array}) for array in group.values())
        if len(group) > 1:
            return
    numbers = {int(digits): array for digits, array in group.items()}
    width = min(len(digits) for digits in group)
    form = f":0{width}" if width > 1 and any(digits.startswith("0") for digits in group) else ""
    embedded = layers is not None and len(numbers) > 1 and set(numbers) == set(range(layers + 1))
    if embedded:
        first = next(digits for digits in group if int(digits) == 0)
        yield Candidate(pattern=f"{before}{first}{after}", arrays={None: numbers.pop(0)})
    offset = 1 if embedded or (layers is not None and set(numbers) == set(range(1, layers + 1))) else 0
    field = f"{{layer{'+1' if offset else ''}{form}}}"
    found: dict[int | None, ForeignArray] = {number - offset: array for number, array in numbers.items()}
    yield Candidate(pattern=f"{before}{field}{after}", arrays=found)


def places(names: Sequence[str]) -> list[StagePart]:
    """Return the stages ``names``, of qkv_matmul and qkv_bias the three parts too."""
    found, unbiased = [], "qkv_bias" not in names
    for name in names:
        joined = name in ("qkv_matmul", "qkv_bias")
        parts: tuple[int | None, ...] = (None, 0, 1, 2) if joined else (None,)
        found += [StagePart(stage=name, part=part, unbiased=joined and unbiased) for part in parts]
    return found


def arrangements(
    shape: Sequence[int], place: StagePart, sizes: Mapping[str, int]
) -> tuple[tuple[str, ...], ...]:
    """Return every order of axes in which an array of ``shape`` can be ``place``, the most usual first.

    One without ``tokens`` where the stage has them is the last token's row alone.
    """
    sizes = as_sized(sizes, place.stage, place.part)
    wholes = [place.axes, *_split(place.axes)]
    if "tokens" not in place.axes:
        wholes += [("tokens", *whole) for whole in wholes]
    elif place.part is None and place.axes[0] == "tokens" and sizes["tokens"] > 1:
        wholes += [place.axes[1:]]
    found = dict.fromkeys(
        spread
        for whole in wholes
        for order in itertools.permutations(whole)
        if "groups" not in order or order.index("kv_heads") < order.index("groups")  # heads in their order
        if (spread := _spread(shape, order, sizes)) is not None
    )
    return tuple(found)


def _split(axes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return ``axes`` with heads apart from channels, and with query heads grouped by their kv head."""
    apart = {
        "q": ("heads", "head_dim"),
        "kv": ("kv_heads", "head_dim"),
        "mixed": ("heads", "head_dim"),
        "qkv": ("qkv_heads", "head_dim"),
    }
    ways = [tuple(part for axis in axes for part in apart.get(axis, (axis,))), factors(axes)]
    return [way for way in dict.fromkeys(ways) if way != axes]


def _spread(shape: Sequence[int], order: Sequence[str], sizes: Mapping[str, int]) -> tuple[str, ...] | None:
    """Return ``order`` with axes of 1 where ``shape`` has more of them, ``None`` where it does not fit."""
    axes: list[str] = []
    left = list(order)
    for index, size in enumerate(shape):
        same = bool(left) and (size == sizes[left[0]] or (left[0] == "keys" and size > sizes["keys"]))
        if same and (size != 1 or len(shape) - index <= len(left)):
            axes.append(left.pop(0))
        elif size == 1:
            axes.append("1")
        else:
            return None
    return tuple(axes) if not left else None


def fits(place: StagePart, candidate: Candidate, layers: int | None) -> bool:
    """Whether the kind of number, and the layers, are those of the stage."""
    if layers is not None and any(layer is not None and layer >= layers for layer in candidate.arrays):
        return False
    layered = None not in candidate.arrays
    scope = STAGES[place.stage].scope
    if scope is Scope.LAYER and not layered:
        return False
    if layered and (scope is Scope.MODEL or (scope is Scope.FIRST_LAYER and len(candidate.arrays) > 1)):
        return False
    kinds = (*FLOATS, *BF16_BITS, *(WHOLE if place.stage == "moe_router_indices" else ()))
    return candidate.first.kind in kinds


def key_of(candidate: Candidate, place: StagePart) -> Key:
    """Return the layer and stage that the candidate's first array would be."""
    scope = STAGES[place.stage].scope
    return Key(None if scope is Scope.MODEL else candidate.layer or 0, place.stage)


def oracle_part(values: F64, place: StagePart, geometry: Geometry) -> F64:
    """Return the oracle's stage, or its columns that are q, k or v."""
    if place.part is None:
        return values
    return values[:, parts(geometry)["qkv"[place.part]]]


def decoded(array: ForeignArray) -> npt.NDArray[np.float32]:
    """Return an array's values as f32 in its shape; 16-bit whole numbers are taken for the bits of bf16."""
    values = array.load().reshape(-1)
    if array.kind == "bf16" or array.kind in BF16_BITS:
        values = (values.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(np.float32).reshape(array.shape)


def cosine(ours: F64, theirs: F64, stage: str) -> float:
    """Return the cosine of what both hold; of scores the visible keys alone."""
    if stage == "attn_scores":
        ours, theirs = np.tril(ours), np.tril(theirs)
    known = np.isfinite(ours) & np.isfinite(theirs)
    a, b = ours[known], theirs[known]
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b)) / size if size else 0.0


def arranged(
    values: npt.NDArray[np.float32], axes: Sequence[str], place: StagePart, sizes: Mapping[str, int]
) -> F64:
    """Return ``values`` as ``place``, of padded keys the first, no tokens where ``axes`` have none."""
    usual = tuple(axis for axis in place.axes if axis != "tokens" or "tokens" in axes)
    found = rearranged(values, axes, usual, as_sized(sizes, place.stage, place.part)).astype(np.float64)
    return found[..., : sizes["keys"]] if "keys" in axes else found


def matched(
    found: Sequence[Candidate],
    wanted: Sequence[StagePart],
    sizes: Mapping[str, int] | None,
    oracle: Mapping[Key, F64],
    geometry: Geometry | None,
) -> tuple[list[Match], list[Conflict]]:
    """Return the surest assignment: each candidate and each place once, joined and parts never both.

    An array whose name and values disagree is assigned to nothing: exchanged arrays may be the very fault.

    Args:
        found: the candidates.
        wanted: the places.
        sizes: size of each axis word, ``None`` where nothing says the model.
        oracle: layer and stage -> the oracle's values in canonical shape, as far as there is one.
        geometry: the model's geometry, where it is known.

    """
    pairs = [
        match
        for candidate in found
        for place in wanted
        if (match := _match(candidate, place, sizes, oracle, geometry)) is not None
    ]
    conflicts = [conflict for candidate in found if (conflict := _conflict(candidate, pairs)) is not None]
    disputed = {name for conflict in conflicts for name in conflict.by_name.candidate.names}
    chosen: list[Match] = []
    for match in sorted(pairs, key=Match.rank):
        if not disputed & match.candidate.names and not any(_excludes(match, other) for other in chosen):
            chosen.append(match)
    complete = Counter(match.place.stage for match in chosen if match.place.part is not None)
    whole = [match for match in chosen if match.place.part is None or complete[match.place.stage] == 3]
    return whole, conflicts


def _conflict(candidate: Candidate, pairs: Sequence[Match]) -> Conflict | None:
    own = [match for match in pairs if match.candidate is candidate]
    if not own:
        return None
    by_name, by_value = max(own, key=lambda match: match.likeness), min(own, key=Match.rank)
    named = by_name.likeness >= UNMISTAKABLE and not by_name.by_value
    if named and by_value.by_value and by_value.likeness < ALIKE:
        return Conflict(by_name=by_name, by_value=by_value)
    return None


def _excludes(match: Match, other: Match) -> bool:
    same_stage = match.place.stage == other.place.stage
    mixed = (match.place.part is None) != (other.place.part is None)
    shared = bool(match.candidate.names & other.candidate.names)
    return shared or match.place == other.place or (same_stage and mixed)


def _match(
    candidate: Candidate,
    place: StagePart,
    sizes: Mapping[str, int] | None,
    oracle: Mapping[Key, F64],
    geometry: Geometry | None,
) -> Match | None:
    if not fits(place, candidate, None if geometry is None else geometry.layers):
        return None
    axes = () if sizes is None else arrangements(candidate.first.shape, place, sizes)
    if sizes is not None and not axes:
        return None
    cosines: tuple[float, ...] = ()
    reference = oracle.get(key_of(candidate, place))
    if sizes is not None and reference is not None and geometry is not None:
        expected, values = oracle_part(reference, place, geometry), decoded(candidate.first)
        cosines = tuple(
            cosine(
                arranged(values, order, place, sizes),
                expected if "tokens" in order or "tokens" not in place.axes else expected[-1],
                place.stage,
            )
            for order in axes
        )
    alike = place.likeness(candidate.pattern)
    match = Match(candidate=candidate, place=place, axes=axes, likeness=alike, cosine=cosines)
    return match if match.by_value or alike >= ALIKE else None
