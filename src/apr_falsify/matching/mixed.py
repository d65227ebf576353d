"""Whether a recording holds arrays of two runs: then nothing that is said of one is true of the other."""

from __future__ import annotations

from apr_falsify.errors import UndecidedError
from apr_falsify.matching.bag import distance
from apr_falsify.matching.forms import StagePlace
from apr_falsify.matching.search import WiringSearch
from apr_falsify.model.stages import LAYER_INPUT, Key
from apr_falsify.model.wiring import has_stage, node_of, supplier_of

_MOST_TRIED = 48
"""How many arrays that are left are tried as what enters a layer."""

_REMEDY = "save the arrays of one run, with its own token ids"


def check_one_run(search: WiringSearch) -> None:
    """Refuse arrays of which some were computed from another stream than the recorded one.

    Raises:
        UndecidedError: a layer continues another run, or a second run lies beside the first.

    """
    for layer in range(search.run.geometry.layers):
        if has_stage("attn_norm", search.run.geometry, layer) and _continues_another(search, layer):
            raise UndecidedError(
                f"layer {layer} was not computed from what is recorded before it: its attn_norm and its "
                "post_attn_residual agree on another stream",
                expected="the arrays of one run",
                remedy=_REMEDY,
            )
    for norm in _norms(search):
        if names := _beside(search, norm):
            where = "" if norm.layer is None else f" of layer {norm.layer}"
            raise UndecidedError(
                f"{names[1]!r} is what {norm.stage}{where} makes of {names[0]!r}, and neither is of "
                "the run of these tokens",
                expected="the arrays of one run",
                remedy=_REMEDY,
            )


def _norms(search: WiringSearch) -> list[Key]:
    """Return the stages that are the norm of a residual stream, and that nothing is missing of."""
    names = ("attn_norm", "ffn_norm", "final_norm")
    streams = ("embedding", "post_attn_residual", "post_ffn_residual")
    return [
        key
        for key in search.state.values
        if key.stage in names and all(source.stage in streams for source in search.run.inputs_of(key))
    ]


def _continues_another(search: WiringSearch, layer: int) -> bool:
    """Whether norm and sum of a layer, each wrong by what enters it, are right for another stream."""
    norm, total, branch = (Key(layer, name) for name in ("attn_norm", "post_attn_residual", "attn_out"))
    uses = search.state.uses
    if any((use := uses.get(StagePlace(key))) is None or use.why != "readers" for key in (norm, total)):
        return False
    entering = supplier_of(LAYER_INPUT, search.run.geometry, layer)
    if StagePlace(entering) not in uses or set(
        node_of(total.stage, search.run.geometry, layer).inputs.values()
    ) != {
        LAYER_INPUT,
        branch.stage,
    }:
        return False
    values = search.state.values
    stream = values[total] - values[branch] * search.run.geometry.residual_scale
    made = search.run.expected(norm, {**values, entering: stream})
    return distance(made, values[norm]) <= search.tight < distance(stream, values[entering])


def _beside(search: WiringSearch, norm: Key) -> tuple[str, str] | None:
    """Return two arrays that are left, of which the second is the norm of the first, ``None`` for none."""
    (entering,) = search.run.inputs_of(norm)
    values = search.state.values
    used = {use.at for use in search.state.uses.values()}
    hits = search.bag.likeliest(StagePlace(entering), values[entering], _MOST_TRIED)
    for hit in [hit for hit in hits if hit.entry.at not in used]:
        made = search.run.expected(norm, {**values, entering: hit.values})
        if distance(made, values[norm]) <= max(search.tight, _SAME_STREAM):
            continue
        for found in search.bag.nearest(StagePlace(norm), made, search.tight)[:3]:
            if found.distance <= search.tight and found.entry.at not in (used | {hit.entry.at}):
                names = (search.bag.arrays[at].name for at in (hit.entry.at, found.entry.at))
                return next(names), next(names)
    return None


_SAME_STREAM = 1e-3
"""Up to this distance two norms are of one stream, whose size a norm does not show."""
