"""The convention solver: is a stage wrong, or only stored in a way that the runtime does not declare?

A closed list of conventions is tried on the subject's stages. One fits where every stage that it
touches, *and every stage that is computed from those*, then agrees with its replay. The second half tells a
storage convention from a runtime fault: scores that are stored unscaled leave the softmax right, scores
that were computed unscaled do not.

Conventions that are as usual as the model's own way (the scale of the scores folded into q; no data above
the diagonal) are reported and change no verdict. They may stand beside a fault (``compare.proof``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from apr_falsify.compare.attempts import LOUD, Attempts
from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.compare.conventions import CONVENTIONS, Convention
from apr_falsify.compare.judge import Judged, judge
from apr_falsify.compare.layout import FACTORS
from apr_falsify.compare.proof import helps, is_read, is_right, wrong
from apr_falsify.compare.structure import consumers
from apr_falsify.formats.weights import Weights
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import ROWS, Key, Layout, stored_shape
from apr_falsify.traces.trace import StageArray, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """What a subject's trace is judged with, and where what breaks down is noted."""

    weights: Weights | None
    keys: Sequence[Key]
    arithmetic: str | None
    attempts: Attempts

    def judge(self, trace: Trace, keys: Sequence[Key]) -> dict[Key, Judged]:
        """Judge some stages of a trace."""
        return judge(trace, self.weights, keys, self.arithmetic, self.attempts)


def declared_or_solved(
    trace: Trace,
    weights: Weights | None,
    keys: Sequence[Key],
    arithmetic: str | None = None,
    attempts: Attempts = LOUD,
) -> tuple[Trace, dict[Key, Judged], list[Finding]]:
    """Judge ``trace`` as declared; where stages fail, look for a convention that fixes them.

    Returns:
        The trace in the layout it was judged in, its judged stages, and a finding for each convention
        that fits and is not declared. One that breaks down, which ``attempts`` notes, does not fit.

    """
    setting = _Setting(weights=weights, keys=keys, arithmetic=arithmetic, attempts=attempts)
    judged = setting.judge(trace, keys)
    findings: list[Finding] = []
    settled: set[Convention] = set()  # to read by one again would be to take it back
    while any(entry.in_error for entry in judged.values()):
        # After each, all are tried again: what did not fit may do so now that its consumers are read rightly.
        untried = [trial for trial in _trials(trace.geometry) if settled.isdisjoint(trial)]
        found = _whole(trace, untried, judged, setting) or _beside_a_fault(trace, untried, judged, setting)
        if found is None:
            break
        trial, trace, again = found
        judged = {**judged, **again}
        settled.update(trial)
        findings += [_finding(convention) for convention in trial]
    return trace, judged, findings


Trial = tuple[Convention, ...]
Solved = tuple[Trial, Trace, dict[Key, Judged]]
"""Conventions, the trace as they read it, and what they concern, judged so."""


def _whole(
    trace: Trace, trials: Iterable[Trial], judged: Mapping[Key, Judged], setting: _Setting
) -> Solved | None:
    """Return the first conventions under which all that they concern is right."""
    for trial in trials:
        solved = _solved(trace, trial, judged, setting, helpful=False)
        if solved is not None:
            return trial, *solved
    return None


def _beside_a_fault(
    trace: Trace, trials: Iterable[Trial], judged: Mapping[Key, Judged], setting: _Setting
) -> Solved | None:
    """Return the convention that helps most where none makes all right, of those that change no verdict."""
    best: Solved | None = None
    for trial in trials:
        if len(trial) > 1 or trial[0].finding is not FindingType.RECORDING:
            continue
        solved = _solved(trace, trial, judged, setting, helpful=True)
        if solved is not None and (
            best is None or _fewer_in_error(judged, solved[1]) > _fewer_in_error(judged, best[2])
        ):
            best = trial, *solved
    return best


def _fewer_in_error(judged: Mapping[Key, Judged], again: Mapping[Key, Judged]) -> int:
    return len(wrong(judged, again)) - len(wrong(again, again))


def _trials(geometry: Geometry) -> Iterator[Trial]:
    possible = [
        one
        for one in CONVENTIONS
        if _POSSIBLE.get(one.word, _always)(geometry) and (geometry.kv_latent or not one.of_latents)
    ]
    yield from ((convention,) for convention in possible)
    for first, second in itertools.combinations(possible, 2):
        if first.word is not second.word:
            yield first, second


def _always(geometry: Geometry) -> bool:
    return True


_POSSIBLE: Mapping[Layout, Callable[[Geometry], bool]] = {
    Layout.HEAD_SCALED: lambda geometry: bool(geometry.attn_scales),
    Layout.CAP_SCALED: lambda geometry: geometry.attn_softcap is not None,
    Layout.BEFORE_SCALE: lambda geometry: geometry.routed_scale != 1.0,
    Layout.ROTARY_FIRST: lambda geometry: geometry.kv_latent > 0,
}
"""Layout word -> whether it means something in a model that no other word means."""

_REORDERED = (Layout.INTERLEAVED, Layout.ROTARY_FIRST, Layout.HEAD_MAJOR, Layout.TRANSPOSED)

_SAME_NORM = 0.05
"""How far the norm of a stage that is only reordered may be from its replay's, 4-bit rounding included."""


def _plausible(
    convention: Convention, trial: Sequence[Convention], trace: Trace, judged: Mapping[Key, Judged]
) -> bool:
    """Whether a stage of the convention fails its replay, and in a way that the convention could fix.

    The norm tells nothing of a stage that another convention of the trial rescales, or puts zeros into.
    """
    if convention.word in FACTORS:
        return _may_be_folded(convention, trace, judged)
    resized = {name for one in trial if one.word not in _REORDERED for name in one.stages}
    failing = [entry for entry in judged.values() if entry.key.stage in convention.stages and entry.in_error]
    if convention.word not in _REORDERED:
        return bool(failing)
    ratios = [
        1.0 if entry.key.stage in resized else entry.introduced.norm_ratio
        for entry in failing
        if entry.introduced is not None
    ]
    return bool(ratios) and all(abs(ratio - 1) <= _SAME_NORM for ratio in ratios)


def _may_be_folded(convention: Convention, trace: Trace, judged: Mapping[Key, Judged]) -> bool:
    """Whether the convention's first stage is off by its factor, in a layer at least."""
    first = [entry for entry in judged.values() if entry.key.stage == convention.stages[0]]
    if convention.stages[0] not in ("q_post_rope", "k_post_rope"):  # of q, k and v only a part would be
        return any(entry.in_error or entry.fit is None for entry in first)
    factor = FACTORS[convention.word]
    return any(
        abs(entry.introduced.norm_ratio / factor(trace.geometry, entry.key.layer) - 1) <= _SAME_NORM
        for entry in first
        if entry.in_error and entry.introduced is not None
    )


_SAMPLED = 3
"""In how many layers that fail a trial is made before it is made in all."""


def _solved(
    trace: Trace,
    trial: Sequence[Convention],
    judged: Mapping[Key, Judged],
    setting: _Setting,
    *,
    helpful: bool,
) -> tuple[Trace, dict[Key, Judged]] | None:
    """Return ``trace`` read by the conventions of ``trial``, ``None`` where they do not fit or break down."""
    name = "the convention " + " with ".join(repr(convention.name) for convention in trial)
    within = replace(setting, attempts=setting.attempts.within(name, decisive=False))
    read = partial(_read_by, trace, trial, judged, within, helpful=helpful)
    return setting.attempts.trying(name).made(read, None)


def _read_by(
    trace: Trace,
    trial: Sequence[Convention],
    judged: Mapping[Key, Judged],
    setting: _Setting,
    *,
    helpful: bool,
) -> tuple[Trace, dict[Key, Judged]] | None:
    """Return ``trace`` read so, and what that concerns, judged so.

    They fit where all that they concern is right then; of one alone it is enough that it is ``helpful``.
    """
    if not all(_plausible(convention, trial, trace, judged) for convention in trial):
        return None
    touched = _touched(trace, trial, setting.keys)
    changed = stored_as(trace, trial)
    if changed is None:
        return None
    layers = dict.fromkeys(key.layer for key in touched if not is_right(judged[key]))
    sample = [key for key in touched if key.layer in list(layers)[:_SAMPLED]]
    if not helpful and not _mends_one(changed, sample, judged, setting):
        return None
    again: dict[Key, Judged] = {}
    for some in (sample, touched):
        if len(again) < len(some):
            again = setting.judge(changed, some)
        if helpful:
            fits = helps(trial[0].word, trial[0].stages, trace, judged, again)
        else:
            fits = bool(again) and not wrong(again, again)
            fits &= all(one.word not in FACTORS or is_read(one.stages, judged, again) for one in trial)
        if not fits:
            return None
    return changed, again


def _mends_one(
    changed: Trace, sample: Sequence[Key], judged: Mapping[Key, Judged], setting: _Setting
) -> bool:
    """Whether the first stage that fails may be right when read so: most trials end before all are judged.

    Where no arithmetic explains it alone, none does among other stages. Where one explains most of it, the
    others decide which arithmetic it is judged in.
    """
    first = [key for key in sample if not is_right(judged[key])][:1]
    alone = setting.judge(changed, first)
    return all(is_right(one) or any(fit.explains for fit in one.fits) for one in alone.values())


def _touched(trace: Trace, trial: Iterable[Convention], keys: Sequence[Key]) -> list[Key]:
    """Return the captured stages that the conventions concern, and what is computed from them."""
    names = {name for convention in trial for name in convention.stages}
    through = any(convention.finding is FindingType.RECORDING for convention in trial)
    fed = consumers(keys, trace.geometry)
    own = [key for key in keys if key.stage in names and key in trace.stages]
    after = [reader for key in own for reader in _readers(key, trace, fed, through)]
    return list(dict.fromkeys([*own, *after]))


def _readers(key: Key, trace: Trace, fed: Mapping[Key, Sequence[Key]], through: bool) -> Iterator[Key]:
    """Yield the captured stages that are computed from one, ``through`` those that were not captured too."""
    for reader in fed.get(key, ()):
        if reader in trace.stages:
            yield reader
        elif through:
            yield from _readers(reader, trace, fed, through)


def stored_as(trace: Trace, trial: Sequence[Convention]) -> Trace | None:
    """Return a trace read by other conventions; ``None`` where the sizes do not allow it."""
    words: dict[str, set[Layout]] = {}
    for convention in trial:
        for name in convention.stages:
            words.setdefault(name, set()).add(convention.word)
    stages = dict(trace.stages)
    for key in trace.stages:
        if key.stage in words:
            array = _toggled(trace, key, words[key.stage])
            if array is None:
                return None
            stages[key] = array
    return replace(trace, stages=stages)


def _toggled(trace: Trace, key: Key, words: set[Layout]) -> StageArray | None:
    array = trace.stages[key]
    layout = tuple(word for word in Layout if (word in array.layout) != (word in words))
    dims = {**trace.geometry.dims(len(trace.tokens)), ROWS: trace.passes.rows}
    shape = stored_shape(key.stage, layout, dims, array.data.size)
    return None if shape is None else StageArray(data=array.data.reshape(shape), layout=layout)


def _finding(convention: Convention) -> Finding:
    word, no_matter = convention.word.value, convention.finding is FindingType.RECORDING
    advice = "declare the layout of this runtime; nothing is wrong with the computation"
    if no_matter:
        advice = f"`layout: [{word}]` in the mapping says so; nothing is wrong with the computation"
    return Finding(
        type=convention.finding,
        stages=convention.stages,
        explanation=f"{convention.name}: the stages and what is computed from them fit so, not as declared",
        advice=advice,
    )
