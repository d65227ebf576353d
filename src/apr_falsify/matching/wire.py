"""Find which array of a recording is which stage of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apr_falsify.compare.layout import canonical
from apr_falsify.errors import TraceError
from apr_falsify.formats.weights import Weights
from apr_falsify.matching.bag import Bag, sizes_named
from apr_falsify.matching.forms import StagePlace
from apr_falsify.matching.forward import OF_LAST, ForwardRun
from apr_falsify.matching.mixed import check_one_run
from apr_falsify.matching.names import Likeness, NamePreference
from apr_falsify.matching.result import Wiring, wiring_of
from apr_falsify.matching.search import WiringSearch
from apr_falsify.model.stages import Key, Layout
from apr_falsify.subjects.foreign import Dump
from apr_falsify.traces.trace import Trace

F64 = npt.NDArray[np.float64]

_STEPS = (1e-4, 3e-3, 3e-2, 0.1)
"""Up to which relative distance an array may be what its inputs make it: the least that explains most."""

_FOLLOWS = 10.0
"""How many times that distance a right run's later stages may be from the oracle's."""


def wire(
    path: Path,
    dump: Dump,
    weights: Weights,
    tokens: tuple[int, ...],
    *,
    oracle: Trace | None = None,
    likeness: Likeness | None = None,
    left_out: frozenset[str] = frozenset(),
) -> Wiring:
    """Return which array is which stage.

    Args:
        path: the recording.
        dump: its arrays.
        weights: the model's weights.
        tokens: the token ids that were run.
        oracle: a run of the same tokens by the original.
        likeness: how like a name is to those of a stage; it decides between equal arrays.
        left_out: arrays that are no stage, the token ids say.

    Raises:
        TraceError: no array is of this model and these tokens.
        UndecidedError: the arrays are of two runs.

    """
    geometry = weights.geometry
    bag = Bag(path, dump, geometry, len(tokens), left_out)
    run = ForwardRun(weights, tokens)
    if not bag.arrays:
        raise TraceError(
            f"no array has the shape of a stage of this model for {len(tokens)} tokens",
            where=path,
            expected=sizes_named(bag.sizes),
            remedy="name the model and the tokens that were run",
        )
    known = {} if oracle is None else _canonical(oracle)
    distances = {layer: _distances(bag, run, known, layer) for layer in range(geometry.layers)}
    near = sum(distance < _STEPS[-1] for each in distances.values() for distance in each)
    for tight in _STEPS:  # the rounding of f32, of 16 bits, of 8 and of 4
        search = WiringSearch(bag, run, tight, NamePreference(likeness), _fine_up_to(distances, tight))
        search.sweep()
        right = sum(use.why == "inputs" for use in search.state.uses.values())
        if not near or 2 * right >= near:
            break
    if not any(use.why == "inputs" for use in search.state.uses.values()):
        raise TraceError(
            "no array is a stage of this model on these tokens, nor made of one",
            where=path,
            expected="the arrays of a run of this model on these tokens",
            remedy="name the model and the tokens that were run",
        )
    check_one_run(search)
    return wiring_of(
        bag,
        search.state.uses,
        search.open.values(),
        tuple(name for name in dump if name not in left_out),
    )


def _canonical(oracle: Trace) -> dict[Key, F64]:
    return {
        key: canonical(array, key, oracle.geometry, oracle.passes).astype(np.float64)
        for key, array in oracle.stages.items()
        if Layout.LAST_TOKEN not in array.layout and key.stage not in (*OF_LAST, "moe_ffn_out")
    }


def _distances(bag: Bag, run: ForwardRun, oracle: Mapping[Key, F64], layer: int | None) -> list[float]:
    """Return how far the nearest array is from each of the oracle's places of a layer."""
    found = []
    for key in run.keys_at(layer):
        for place in run.places_of(key) if key in oracle else ():
            hits = bag.nearest(StagePlace(place.key, place.part), run.part(place, oracle[key]), _STEPS[-1])
            found += [hits[0].distance] if hits else []
    return found


def _fine_up_to(distances: Mapping[int, Sequence[float]], tight: float) -> int:
    """Return the last layer of which two arrays are the oracle's: what was wrong before would show there."""
    for layer, each in reversed(list(distances.items())):
        if sum(distance <= tight * _FOLLOWS for distance in each) > 1:
            return layer
    return 0
