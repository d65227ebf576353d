"""A starter of MAPPING.yaml: proposals, each with what supports it; the user confirms by saving the file.

1. Arrays of one name but for the layer become a candidate; shape, name and value find its stage.
2. What the shape leaves open (transposed scores, interleaved pairs, a missing scale) the convention solver
   decides: the stage, and what is computed from it, must both fit their replay.
3. What would make a stage equal to the oracle's without that proof may be the very fault. It is written
   down as a comment, and stays off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from apr_falsify.commands.starter_match import (
    F64,
    SAME,
    Candidate,
    Conflict,
    Match,
    arranged,
    candidates,
    cosine,
    decoded,
    matched,
    places,
)
from apr_falsify.commands.starter_names import ALIKE
from apr_falsify.compare.convention import declared_or_solved
from apr_falsify.compare.judge import Judged
from apr_falsify.compare.layout import canonical
from apr_falsify.compare.stored_format import StoredRun, in_its_format
from apr_falsify.compare.structure import consumers
from apr_falsify.formats.weights import Weights
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import APR_STAGES, STAGES, Key, Layout, stored_shape
from apr_falsify.model.wiring import stages_of
from apr_falsify.subjects.array_axes import axis_sizes
from apr_falsify.subjects.foreign import BF16_BITS, Dump
from apr_falsify.subjects.mapped import MASKED_BELOW, mapped_stages
from apr_falsify.subjects.mapped_arrays import MOST_TOKENS, WHOLE
from apr_falsify.subjects.mapping import LAYOUT_OF, MappingFile, StageMap
from apr_falsify.traces.provenance import Provenance
from apr_falsify.traces.trace import StageArray, Trace

_SWAPPED: Mapping[Layout, tuple[tuple[str, str], ...]] = {
    Layout.TRANSPOSED: (("tokens", "keys"), ("tokens", "hidden"), ("tokens", "ffn"), ("tokens", "qkv")),
    Layout.HEAD_MAJOR: (("tokens", "heads"), ("tokens", "kv_heads")),
}
"""Layout word that axes say too -> the axes that change places."""

_DOUBTED = (Layout.INTERLEAVED, Layout.UNSCALED, Layout.TRANSPOSED, Layout.HEAD_MAJOR)
"""Words that a fault may look like; zeros above the diagonal and padding are never a computation."""

_SAME_SCALE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalContext:
    """What is known besides the recording.

    Attributes:
        geometry: the model's geometry, ``None`` where no model was named.
        tokens: the token ids that were run, ``None`` where nobody says.
        tokens_from: the array that holds them, ``None`` where none does.
        oracle: a run of the same tokens to compare with.
        weights: the model's weights.

    """

    geometry: Geometry | None = None
    tokens: tuple[int, ...] | None = None
    tokens_from: str | None = None
    oracle: Trace | None = None
    weights: Weights | None = None


@dataclass(slots=True, kw_only=True)
class Proposal:
    """One stage of the file to be.

    Attributes:
        row: what the file will say.
        matches: what it rests on, one for each array.
        notes: what supports it.
        doubts: what stays off, each the lines of YAML and why.

    """

    row: StageMap
    matches: tuple[Match, ...]
    notes: list[str] = field(default_factory=list)
    doubts: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Starter:
    """What is proposed for one recording.

    Attributes:
        proposals: the stages, in forward order.
        conflicts: arrays whose name and values disagree.
        unused: candidates without a stage.
        missing: stages without a candidate.
        kept: the number format in which the run computed, by its values; ``None`` for that of the arrays.

    """

    proposals: tuple[Proposal, ...]
    conflicts: tuple[Conflict, ...]
    unused: tuple[Candidate, ...]
    missing: tuple[str, ...]
    kept: str | None = None


def token_arrays(dump: Dump, vocab: int | None) -> dict[str, tuple[int, ...]]:
    """Return the arrays that may hold token ids: whole numbers in one axis, all within the vocabulary."""
    found = {}
    for name, array in dump.items():
        count = math.prod(array.shape)
        if array.kind in WHOLE and array.shape[-1:] == (count,) and 0 < count <= MOST_TOKENS:
            ids = tuple(int(token) for token in array.load().reshape(-1))
            if all(0 <= token < (vocab or math.inf) for token in ids):
                found[name] = ids
    return found


def propose(dump: Dump, known: ProposalContext, where: Path) -> Starter:
    """Return proposals for the arrays of ``dump``.

    Args:
        dump: the arrays.
        known: model, tokens, oracle, as far as they are known.
        where: the recording, for messages.

    """
    geometry = known.geometry
    sizes = axis_sizes(geometry, len(known.tokens)) if geometry and known.tokens else None
    names = stages_of(geometry) if geometry is not None else APR_STAGES
    found = candidates(
        {name: array for name, array in dump.items() if name != known.tokens_from},
        None if geometry is None else geometry.layers,
    )
    chosen, conflicts = matched(found, places(names), sizes, _canonical(known), geometry)
    proposals = [
        proposal
        for name in names
        if (proposal := _proposal(name, [match for match in chosen if match.place.stage == name], known))
    ]
    proposed, kept = {each.row.stage for each in proposals}, None
    if sizes is not None and geometry is not None:
        for proposal in proposals:
            _see_mask(proposal, sizes)
        if known.oracle is not None or known.weights is not None:
            kept = _solve(proposals, dump, known, where)
    return Starter(
        proposals=tuple(proposals),
        conflicts=tuple(conflicts),
        unused=_unused(found, (*chosen, *(conflict.by_name for conflict in conflicts))),
        missing=tuple(name for name in names if not STAGES[name].inner and name not in proposed),
        kept=kept,
    )


def _unused(found: Iterable[Candidate], matches: Iterable[Match]) -> tuple[Candidate, ...]:
    """Return the candidates of which no array is in ``matches``, those of the same arrays once."""
    used = {name for match in matches for name in match.candidate.names}
    left = {candidate.names: candidate for candidate in found if not candidate.names & used}
    return tuple(left.values())


def _canonical(known: ProposalContext) -> dict[Key, F64]:
    if known.oracle is None:
        return {}
    trace = known.oracle
    return {
        key: canonical(array, key, trace.geometry, trace.passes).astype(np.float64)
        for key, array in trace.stages.items()
        if Layout.LAST_TOKEN not in array.layout
    }


def _proposal(name: str, matches: list[Match], known: ProposalContext) -> Proposal | None:
    if not matches:
        return None
    matches.sort(key=lambda match: match.place.part or 0)
    axes = tuple(match.axes[0] if match.axes else match.place.axes for match in matches)
    kinds = {match.candidate.first.kind for match in matches}
    row = StageMap(
        stage=name,
        names=tuple(match.candidate.pattern for match in matches),
        axes=axes,
        layout=tuple(_seen_in_shape(matches[0], axes[0], known)),
        dtype="bf16" if kinds <= set(BF16_BITS) else None,
    )
    proposal = Proposal(row=row, matches=tuple(matches), notes=[_support(matches)])
    if row.dtype:
        proposal.notes.append("its 16-bit whole numbers are taken for the bits of bf16")
    others = [" or ".join(f"[{', '.join(each)}]" for each in match.axes[1:]) for match in matches]
    if any(others):
        proposal.notes.append(f"its shape allows {next(filter(None, others))} too")
    return proposal


def _seen_in_shape(match: Match, axes: tuple[str, ...], known: ProposalContext) -> Iterator[Layout]:
    """Yield the layout words that an array's shape alone says: the last row, keys beyond the tokens."""
    if "tokens" in match.place.axes and "tokens" not in axes:
        yield Layout.LAST_TOKEN
    if "keys" in axes and known.tokens is not None:
        shape = match.candidate.first.shape
        if len(shape) == len(axes) and shape[axes.index("keys")] > len(known.tokens):
            yield Layout.PADDED_KEYS


def _support(matches: Sequence[Match]) -> str:
    """Say what a proposal rests on."""
    alike = min(match.likeness for match in matches)
    named = f"name (likeness {alike:.2f})"
    if not matches[0].axes:
        return f"{named} alone: no model and tokens to check its shape against"
    cosines = [match.best for match in matches if match.best is not None]
    if len(cosines) < len(matches):
        return f"{named} and shape; no oracle's values to compare with"
    if all(match.by_value for match in matches):
        told = f"values: cosine {min(cosines):.7f} with the oracle's"
        alone = "; its name says nothing, and arrays that the port exchanges would not show"
        return told if alike >= ALIKE else f"{told}{alone}"
    return (
        f"{named} and shape alone: cosine {min(cosines):.4f} with the oracle's, from which it differs or "
        "inherits a difference"
    )


def _see_mask(proposal: Proposal, sizes: Mapping[str, int]) -> None:
    """Where the mask was added to the scores, it tells the tokens' axis from the keys'."""
    if proposal.row.stage != "attn_scores" or sizes["tokens"] < 2:
        return
    (match,) = proposal.matches
    values = decoded(match.candidate.first)
    future = np.triu(np.ones((sizes["tokens"], sizes["tokens"]), dtype=bool), 1)
    for axes in match.axes:
        scores = arranged(values, axes, match.place, sizes)
        if (scores[:, future] <= MASKED_BELOW).all():
            proposal.row = replace(proposal.row, axes=(axes,), masked=True)
            proposal.notes.append("every value above the diagonal is the mask's")
            return


def _solve(proposals: Sequence[Proposal], dump: Dump, known: ProposalContext, where: Path) -> str | None:
    """Let the convention solver decide what shapes leave open; what it does not prove becomes a doubt.

    Returns the number format that the values show where it is not that of the arrays, else ``None``.
    """
    assert known.geometry is not None
    assert known.tokens is not None
    said = MappingFile(path=where, runtime=_UNKNOWN, stages=tuple(proposal.row for proposal in proposals))
    stages, saved_as = mapped_stages(dump, said, known.geometry, len(known.tokens), where)
    trace = Trace(
        provenance=Provenance(runtime=_UNKNOWN, dtype=_UNKNOWN, saved_as=saved_as),
        geometry=known.geometry,
        tokens=known.tokens,
        stages=stages,
    )
    held, _ = in_its_format(StoredRun(trace=trace, weights=known.weights), list(stages))
    trace = held.trace
    solved, judged, _ = declared_or_solved(trace, held.weights, list(stages))
    oracle = _canonical(known)
    changed = {name: _changed(solved, trace, name) for _, name in stages}
    for proposal in proposals:
        keys = [key for key in stages if key.stage == proposal.row.stage]
        for word in changed[proposal.row.stage]:
            _adopt(proposal, word, _is_proved(word, changed, stages, known.geometry))
        if not changed[proposal.row.stage]:
            _doubt(proposal, solved, keys[0], oracle, judged)
        _tell_replay(proposal, keys, judged)
    return None if trace.provenance.dtype == _UNKNOWN else trace.provenance.dtype


_UNKNOWN = "unknown"


def _changed(solved: Trace, trace: Trace, name: str) -> tuple[Layout, ...]:
    """Return the words by which the solver's layout of a stage differs from the proposed one."""
    key = next(key for key in trace.stages if key.stage == name)
    words = set(solved.stages[key].layout) ^ set(trace.stages[key].layout)
    return tuple(word for word in Layout if word in words)


_PROOF: Mapping[Layout, str] = {Layout.INTERLEAVED: "attn_scores", Layout.UNSCALED: "attn_softmax"}
"""Word -> the one stage that shows whether it is storage; attention reads only v of qkv_bias."""


def _is_proved(
    word: Layout, changed: Mapping[str, Sequence[Layout]], keys: Iterable[Key], geometry: Geometry
) -> bool:
    """Whether a recorded stage outside those that ``word`` changes is computed from them."""
    if word not in _DOUBTED:
        return True
    own = {name for name, words in changed.items() if word in words}
    fed = consumers(keys, geometry)
    reached = {name for key, after in fed.items() if key.stage in own for _, name in after} - own
    return _PROOF[word] in reached if word in _PROOF else bool(reached)


def _tell_replay(proposal: Proposal, keys: Sequence[Key], judged: Mapping[Key, Judged]) -> None:
    """Say whether a stage is what its own inputs make it, where the oracle's values do not support it."""
    known = [judged[key] for key in keys if key in judged and judged[key].fit is not None]
    wrong = [entry.key.layer for entry in known if entry.in_error]
    if wrong:
        layers = ", ".join(str(layer) for layer in wrong if layer is not None)
        where = f" in layer {layers}" if layers else ""
        proposal.notes.append(
            f"replay: not what its own inputs make it{where}: another order of axes, another array, or the "
            "port's fault"
        )
    elif len(known) == len(keys) and not all(match.by_value for match in proposal.matches):
        proposal.notes.append("replay: what its own inputs make it, in every layer")


def _adopt(proposal: Proposal, word: Layout, proved: bool) -> None:
    why = f"replay: stored {word.value}, it and what is computed from it fit, and as it lies they do not"
    row = proposal.row
    axes = _swapped(row.axes[0], word) if word in _SWAPPED else None
    if not proved:
        doubt = f"stored {word.value} it fits its replay: {_UNPROVED}"
        proposal.doubts.append((_layout_line(row, word), doubt))
    elif word in _SWAPPED and axes is None:
        reshaped = "its shape does not say so: a reshape in place of a transpose, in the port or its writer"
        proposal.doubts.append((_layout_line(row, word), f"{why}; but {reshaped}"))
    else:
        added = replace(row, layout=(*row.layout, word))
        proposal.row = added if axes is None else replace(row, axes=(axes,))
        proposal.notes.append(why)


_UNPROVED = "nothing computed from it was recorded, so that this may be the very fault"


def _swapped(axes: tuple[str, ...], word: Layout) -> tuple[str, ...] | None:
    for one, other in _SWAPPED[word]:
        if one in axes and other in axes:
            places = {one: other, other: one}
            return tuple(places.get(axis, axis) for axis in axes)
    return None


def _doubt(
    proposal: Proposal,
    trace: Trace,
    key: Key,
    oracle: Mapping[Key, F64],
    judged: Mapping[Key, Judged],
) -> None:
    """Write down, as a comment, what would make a stage the oracle's and was not proved."""
    if key not in oracle or _agrees(trace, key, trace.stages[key], oracle):
        return
    for word in _DOUBTED:
        if key.stage not in LAYOUT_OF[word] or word in trace.stages[key].layout:
            continue
        array = _with(trace, key, word)
        if array is not None and _agrees(trace, key, array, oracle):
            proposal.doubts.append((_layout_line(proposal.row, word), _why_off(word, trace, key, judged)))


def _layout_line(row: StageMap, word: Layout) -> str:
    axes = _swapped(row.axes[0], word) if word in _SWAPPED else None
    return f"layout: [{word.value}]" if axes is None else f"axes: [{', '.join(axes)}]"


def _why_off(word: Layout, trace: Trace, key: Key, judged: Mapping[Key, Judged]) -> str:
    fed = [each for each in consumers(trace.stages, trace.geometry).get(key, ()) if each in judged]
    names = ", ".join(dict.fromkeys(name for _, name in fed))
    equal = f"stored {word.value} it would be the oracle's"
    if not fed:
        return f"{equal}: {_UNPROVED}"
    return f"{equal}, but {names}, computed from it, does not fit so: this may be the very fault"


def _with(trace: Trace, key: Key, word: Layout) -> StageArray | None:
    array = trace.stages[key]
    layout = (*array.layout, word)
    shape = stored_shape(key.stage, layout, trace.geometry.dims(len(trace.tokens)), array.data.size)
    return None if shape is None else StageArray(data=array.data.reshape(shape), layout=layout)


def _agrees(trace: Trace, key: Key, array: StageArray, oracle: Mapping[Key, F64]) -> bool:
    """Whether a stage has the oracle's direction and size."""
    if Layout.LAST_TOKEN in array.layout:
        return True
    ours, theirs = canonical(array, key, trace.geometry, trace.passes).astype(np.float64), oracle[key]
    if key.stage == "attn_scores":
        ours, theirs = np.tril(ours), np.tril(theirs)
    size = float(np.linalg.norm(theirs))
    scale = float(np.linalg.norm(ours)) / size if size else 1.0
    return 1 - cosine(ours, theirs, key.stage) <= SAME and abs(scale - 1) <= _SAME_SCALE
