"""Structure before values: tokens, geometry, and which stages there are to compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from apr_falsify.compare.bisection import Finding, FindingType, Status
from apr_falsify.errors import TokensError
from apr_falsify.model.rope import Rope
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key, Scope
from apr_falsify.model.wiring import inputs_of, stages_of
from apr_falsify.traces.trace import Trace

SHAPING = (
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_dim",
    "v_head_dim",
    "q_latent",
    "kv_latent",
    "intermediate",
    "vocab",
    "mixtures",
    "experts_per_token",
    "attends",
    "feeds",
    "mixer",
)
"""The sizes without which no stage can be compared."""

_USED_BY: Mapping[str, tuple[str, ...]] = {
    "heads": ("attn_scores", "attention"),
    "kv_heads": ("attn_scores", "attention"),
    "head_dim": ("q_post_rope", "k_post_rope", "attn_scores"),
    "v_head_dim": ("attention",),
    "rope": ("q_post_rope", "k_post_rope"),
    "norm_eps": ("attn_norm", "ffn_norm", "final_norm"),
    "activation": ("ffn_silu",),
    "local_rope": ("q_post_rope", "k_post_rope"),
    "attn_scales": ("attn_scores",),
    "attn_softcap": ("attn_scores",),
    "final_softcap": ("lm_head",),
    "embed_scale": ("embedding",),
    "residual_scale": ("post_attn_residual", "post_ffn_residual"),
    "logit_scale": ("lm_head",),
    "rotated": ("q_post_rope", "k_post_rope"),
    **dict.fromkeys(("norm_topk_prob", "router_scoring", "routed_scale"), ("router_weights", "ffn_out")),
    **dict.fromkeys(
        ("router_corrected", "expert_groups", "expert_groups_chosen", "group_best", "routed_sum_eps"),
        ("router_weights", "ffn_out"),
    ),
    **dict.fromkeys(("shared_intermediate", "shared_gated"), ("ffn_out",)),
    **dict.fromkeys(("windows", "chunks"), ("attn_softmax",)),
    **dict.fromkeys(("temperature_scale", "temperature_floor"), ("q_tempered", "attn_scores")),
    "weighted_input": ("ffn_out",),
    "qkv_bias": ("qkv_bias",),
    "output_bias": ("attn_out",),
    "mlp_bias": ("ffn_gate", "ffn_up", "ffn_out"),
}
"""Constant of the geometry -> the stages that use it."""

_PRESENCE = ("qkv_bias", "output_bias", "mlp_bias")
"""Whether there is a tensor: the comparison of weights tells that."""

_SAME = 1e-6
"""Constants that agree to f32 are the same: GGUF stores them so."""


def check_tokens(oracle: Trace, subject: Trace) -> None:
    """Check that both runs ran the same tokens.

    Raises:
        TokensError: they did not.

    """
    if oracle.tokens != subject.tokens:
        raise TokensError(
            f"the traces ran different tokens: oracle {list(oracle.tokens)}, subject {list(subject.tokens)}",
            expected="the same token ids on both sides",
            remedy="capture the oracle with --tokens " + ",".join(map(str, subject.tokens)),
        )


def same_shapes(oracle: Geometry, subject: Geometry) -> bool:
    """Whether stages of the two models can be compared element by element."""
    return all(_stated(oracle, name) == _stated(subject, name) for name in SHAPING)


def geometry_findings(oracle: Geometry, subject: Geometry) -> list[Finding]:
    """Return a finding for each size or constant in which the two models differ."""
    return [
        Finding(
            type=FindingType.GEOMETRY,
            stages=_USED_BY.get(field.name, ()),
            explanation=(
                f"{field.name} is {_text(ours)} in the oracle's model, {_text(theirs)} in the subject's"
            ),
            advice="check that both sides run the same model, and how the subject's file was converted",
        )
        for field in fields(Geometry)
        for ours, theirs in [_stated_by(oracle, subject, field.name)]
        if (field.name in SHAPING or field.name in _USED_BY) and not _same(ours, theirs)
    ]


def constant_findings(oracle: Geometry, subject: Geometry, keys: Iterable[Key], tokens: int) -> list[Finding]:
    """Return, for each constant in which the models differ, where it is used: a fault of conversion.

    A replay with the subject's own weights and constants does not show it: it was run as it was converted.
    A window as wide as the run of ``tokens`` tokens is none.
    """
    found: dict[tuple[str, int | None], list[str]] = {}
    for name, stages in _USED_BY.items():
        ours, theirs = (_in_force(each, name, tokens) for each in (oracle, subject))
        if name not in _PRESENCE and not _same(ours, theirs):
            for layer, stage in keys:
                if stage in stages and _differs_in(layer, ours, theirs):
                    found.setdefault((name, layer), []).append(stage)
    return [
        Finding(
            type=FindingType.WEIGHTS,
            layer=layer,
            stages=tuple(used),
            explanation=(
                f"{name} is {_text(_stated(oracle, name))} in the oracle's model, "
                f"{_text(_stated(subject, name))} in the model that the subject runs"
            ),
            advice="check the config.json that the subject's file was converted from",
            cause=(
                "constant",
                f"{name} {_text(_stated(subject, name))} instead of {_text(_stated(oracle, name))}",
            ),
        )
        for (name, layer), used in found.items()
    ]


def _stated(geometry: Geometry, name: str) -> Any:
    """Return a size or constant; what may differ by layer of every layer, also where it is as usual."""
    if name == "attn_scales":
        return tuple(geometry.attn_scale_at(layer) for layer in range(geometry.layers))
    value = getattr(geometry, name)
    return value or (_USUAL[name],) * geometry.layers if name in _USUAL else value


_USUAL: Mapping[str, Any] = {"rotated": True, "chunks": None, "attends": True, "feeds": False}
"""What differs by layer -> what a layer has where nothing is said."""


def _stated_by(oracle: Geometry, subject: Geometry, name: str) -> tuple[Any, Any]:
    """Return what both models state; of the usual scale nothing, since the size of the heads says it."""
    if name == "attn_scales" and not (oracle.attn_scales or subject.attn_scales):
        return (), ()
    return _stated(oracle, name), _stated(subject, name)


def _in_force(geometry: Geometry, name: str, tokens: int) -> Any:
    stated = _stated(geometry, name)
    if name not in ("windows", "chunks"):
        return stated
    return tuple(None if size is None or size >= tokens else size for size in stated)


def _differs_in(layer: int | None, ours: Any, theirs: Any) -> bool:
    """Whether a constant differs in ``layer``, where it may differ from layer to layer."""
    if layer is None or not (isinstance(ours, tuple) and isinstance(theirs, tuple)):
        return True
    return layer < min(len(ours), len(theirs)) and not _same(ours[layer], theirs[layer])


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Rope) and isinstance(theirs, Rope):
        kinds = {ours.kind, theirs.kind}
        # GGUF keeps llama3 scaling as one divisor per pair: other words for the same rotation.
        return _close(ours.theta, theirs.theta) and (
            kinds == {"llama3", "divided"} or (ours.kind == theirs.kind and _same_scaling(ours, theirs))
        )
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return all(_same(a, b) for a, b in zip(ours, theirs, strict=False))  # depth has a line of its own
    return _close(ours, theirs) if isinstance(ours, float) else bool(ours == theirs)


_OF_RULE: Mapping[str, Mapping[str, float]] = {"yarn": {"beta_fast": 32.0, "beta_slow": 1.0}}
"""What a file that does not say it means, by scaling rule."""


def _same_scaling(ours: Rope, theirs: Rope) -> bool:
    first, second = ({**_OF_RULE.get(each.kind, {}), **each.parameters} for each in (ours, theirs))
    return all(_close(first[name], second[name]) for name in first.keys() & second.keys()) and all(
        _close(a, b) for a, b in zip(ours.divisors, theirs.divisors, strict=False)
    )


def _close(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= _SAME * max(abs(ours), abs(theirs))


def _text(value: Any) -> str:
    if isinstance(value, Rope):
        return f"{value.kind} with base {value.theta:.7g}"
    if isinstance(value, tuple) and len(set(value)) == 1:
        return f"{value[0]} in every layer"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def keys_to_judge(
    oracle: Trace, subject: Trace, layers: Sequence[int] | None, stages: Iterable[str] | None
) -> list[Key]:
    """Return every stage of the table in the chosen layers, and the whole-model ones, in forward order.

    An inner stage is one of them only where the subject has it: else it is computed through.
    """
    chosen = sorted({*oracle.layers, *subject.layers}) if layers is None else sorted(layers)
    wanted = set(STAGES if stages is None else stages)
    keys: list[Key] = [
        Key(layer, name)
        for layer in chosen
        for name, row in STAGES.items()
        if row.scope is Scope.LAYER or (row.scope is Scope.FIRST_LAYER and layer == 0)
    ]
    keys += [Key(None, name) for name, row in STAGES.items() if row.scope is Scope.MODEL]
    return [
        key for key in keys if key.stage in wanted and (not STAGES[key.stage].inner or key in subject.stages)
    ]


def status_of(key: Key, oracle: Trace, subject: Trace) -> Status:
    """Return what can be done with a stage."""
    ours, theirs = key in oracle.stages, key in subject.stages
    if ours and theirs:
        return Status.COMPARED
    if not ours and not theirs and key.stage not in stages_of(oracle.geometry, key.layer):
        return Status.NOT_APPLICABLE
    if ours or theirs:
        lacking = subject if ours else oracle
        if not _was_requested(key, lacking):
            return Status.NOT_REQUESTED
        return Status.MISSING_IN_SUBJECT if ours else Status.MISSING_IN_ORACLE
    both = _was_requested(key, subject) and _was_requested(key, oracle)
    return Status.MISSING_IN_SUBJECT if both else Status.NOT_REQUESTED


def _was_requested(key: Key, trace: Trace) -> bool:
    """Whether the stage was requested of the run; where that is not known, it was."""
    layer, name = key
    provenance = trace.provenance
    if provenance.stages is not None and name not in provenance.stages:
        return False
    if provenance.layers is None:
        return True
    first, last = provenance.layers
    return last - first == trace.geometry.layers if layer is None else first <= layer < last


def consumers(keys: Iterable[Key], geometry: Geometry) -> dict[Key, list[Key]]:
    """Return, for each stage, those of ``keys`` that are computed from it."""
    fed: dict[Key, list[Key]] = {}
    for key in keys:
        if key.stage in stages_of(geometry, key.layer):
            for source in inputs_of(key.stage, geometry, key.layer).values():
                fed.setdefault(source, []).append(key)
    return fed


def descendants(sources: Iterable[Key], fed: Mapping[Key, Sequence[Key]]) -> set[Key]:
    """Return every stage that is computed, directly or not, from one of ``sources``."""
    reached: set[Key] = set()
    waiting = list(sources)
    while waiting:
        for key in fed.get(waiting.pop(), ()):
            if key not in reached:
                reached.add(key)
                waiting.append(key)
    return reached
