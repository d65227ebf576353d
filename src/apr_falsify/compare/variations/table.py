"""The closed table of causes, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from apr_falsify.compare.variations import (
    attend,
    biases,
    cached,
    caps,
    common,
    experts,
    feedforward,
    fused,
    head_norms,
    latents,
    multipliers,
    norms,
    places,
    projected,
    quantised,
    queries,
    recurrent,
    rescaled,
    residual,
    rotary,
    routing,
    sinks,
    solved_rotary,
    state_space,
    stored,
    table_rows,
    turning,
)
from apr_falsify.compare.variations.case import Case, Guess, Variation

_RESIDUALS = residual.STAGES
_QKV = ("qkv_matmul", "qkv_bias")
_MIXED = ("attn_scores", "attention")
_HEADED = (*_QKV, *turning.ROTATED, "attn_scores", "attn_softmax", "attention")
_REWEIGHED = tuple(projected.WEIGHTED)

TURNING = (
    "rope-base",
    "rope-direction",
    "rope-not-applied",
    "rope-pairing",
    "rope-partial",
    "rope-position",
    "rope-scaling",
    "rotary-order",
)
"""Variations of a rotation, where a model has one."""

MISREAD_WEIGHTS = Variation(
    name="misread-weights", stages=_REWEIGHED, guesses=quantised.misread_weights, multiplies=True
)


def _of_router(
    name: str,
    stages: Sequence[str],
    guesses: Callable[[Case], Iterator[Guess]],
    where: Callable[[Case], bool] = routing.is_routed,
) -> Variation:
    return Variation(name=name, stages=stages, where=where, guesses=guesses, mixed=True)


def _of_experts(
    name: str,
    guesses: Callable[[Case], Iterator[Guess]],
    where: Callable[[Case], bool] = experts.is_mixture,
) -> Variation:
    return Variation(name=name, stages=experts.STAGES, where=where, guesses=guesses, mixed=True)


TABLE: tuple[Variation, ...] = (
    # What changes one thing and has no free parameter, or one that is rounded.
    Variation(name="bias", stages=tuple(biases.BIASED), guesses=biases.measured_bias),
    Variation(
        name="multiplier",
        stages=multipliers.STAGES,
        where=multipliers.is_declared,
        guesses=multipliers.named_multiplier,
    ),
    _of_router("router-weights", routing.WEIGHED, routing.other_weights),
    _of_router("expert-choice", routing.CHOSEN, routing.other_choice),
    _of_experts("shared-expert", experts.other_shared, where=experts.has_shared),
    _of_experts("expert-form", experts.other_form, where=experts.has_own_form),
    _of_router("routed-scale", routing.WEIGHED, experts.measured_scale, where=experts.has_scale),
    Variation(name="decay", stages=("decay",), where=recurrent.is_delta_rule, guesses=recurrent.other_decay),
    Variation(
        name="decay", stages=("decay",), where=state_space.is_state_space, guesses=state_space.other_decay
    ),
    Variation(name="step", stages=("dt",), guesses=state_space.other_step),
    Variation(name="factor", guesses=common.named_factor),
    Variation(name="rope-applied", stages=turning.ROTATED, guesses=rotary.applied),
    Variation(name="rope-base", stages=turning.ROTATED, guesses=rotary.other_base),
    Variation(name="rope-pairing", stages=turning.ROTATED, guesses=rotary.other_pairing),
    Variation(name="rope-direction", stages=turning.ROTATED, guesses=rotary.other_direction),
    Variation(name="rope-position", stages=turning.ROTATED, guesses=rotary.other_positions),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=rotary.other_scaling),
    Variation(name="rope-base", stages=turning.ROTATED, guesses=rotary.other_base_unscaled),
    Variation(name="rope-partial", stages=turning.ROTATED, guesses=solved_rotary.other_share),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=rotary.invented_scaling),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=rescaled.measured_yarn),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=rescaled.measured_stretch),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=solved_rotary.other_longrope),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=solved_rotary.other_length),
    Variation(name="rope-position", stages=turning.ROTATED, guesses=solved_rotary.other_positions),
    Variation(name="head-norm", stages=head_norms.STAGES, guesses=head_norms.other_head_norm),
    Variation(name="head-parts", stages=latents.STAGES, where=latents.is_latent, guesses=latents.other_parts),
    Variation(
        name="head-parts", stages=("qkv_matmul",), where=latents.is_latent, guesses=latents.other_split
    ),
    Variation(name="qkv-order", stages=turning.ROTATED, guesses=rotary.other_part),
    Variation(name="missing-bias", stages=(*turning.ROTATED, "attention"), guesses=biases.composed_bias),
    Variation(name="other-bias", stages=("qkv_bias",), guesses=biases.other_bias),
    Variation(name="fused-attention", stages=("attention",), where=fused.is_fused, guesses=fused.inside),
    Variation(name="head-mapping", stages=_MIXED, where=attend.is_apart, guesses=attend.other_mapping),
    Variation(name="rope-not-applied", stages=("attn_scores",), guesses=attend.unrotated_scores),
    Variation(
        name="attention-temperature",
        stages=queries.TEMPERED,
        where=queries.is_tempered,
        guesses=queries.other_temperature,
    ),
    Variation(
        name="norm-after-rope", stages=queries.NORMED, where=queries.is_normed, guesses=queries.without_norm
    ),
    Variation(name="layout", stages=("attn_scores",), guesses=attend.masked_scores),
    Variation(name="mask", stages=("attn_softmax",), guesses=attend.of_scores(attend.other_mask)),
    Variation(name="sinks", where=sinks.has_sinks, guesses=attend.of_scores(sinks.other_sinks)),
    Variation(name="padding", stages=("attn_softmax",), guesses=attend.of_scores(attend.padding)),
    Variation(name="softmax-axis", stages=("attn_softmax",), guesses=attend.of_scores(attend.other_axis)),
    Variation(name="temperature", stages=("attn_softmax",), guesses=attend.of_scores(attend.temperature)),
    Variation(name="mixing", stages=("attention",), where=attend.is_apart, guesses=attend.other_mixing),
    Variation(name="swapped-gate-up", stages=("ffn_silu", "ffn_swigl"), guesses=feedforward.swapped_gate_up),
    Variation(name="activation", stages=("ffn_silu", "ffn_swigl"), guesses=feedforward.other_activation),
    Variation(name="gate-product", stages=("ffn_swigl",), guesses=feedforward.other_product),
    Variation(name="residual", stages=_RESIDUALS, guesses=residual.measured_residual),
    Variation(name="residual-source", stages=_RESIDUALS, guesses=residual.other_stream),
    Variation(name="convolution", stages=("conv_out",), guesses=recurrent.other_convolution),
    Variation(name="beta", stages=("beta",), guesses=recurrent.other_beta),
    Variation(
        name="delta-rule", stages=("scan_out",), where=recurrent.is_delta_rule, guesses=recurrent.other_rule
    ),
    Variation(
        name="scan", stages=("scan_out",), where=state_space.is_state_space, guesses=state_space.other_scan
    ),
    Variation(name="gate", stages=recurrent.GATED, where=recurrent.is_gated, guesses=recurrent.other_gate),
    Variation(
        name="gate-and-norm",
        stages=("scan_norm",),
        where=state_space.is_state_space,
        guesses=state_space.other_norm,
    ),
    Variation(name="epsilon", where=norms.is_norm, guesses=norms.usual_epsilon),
    Variation(name="norm-form", where=norms.is_norm, guesses=norms.wrong_form),
    Variation(name="norm-input", where=norms.is_norm, guesses=norms.wrong_input),
    Variation(name="qkv-order", stages=_QKV, guesses=projected.other_order),
    Variation(name="rotary-order", stages=(*_QKV, *turning.ROTATED), guesses=projected.rotary_order),
    Variation(name="next-step-included", where=projected.is_product, guesses=projected.other_use),
    Variation(name="soft-cap", stages=caps.STAGES, guesses=caps.soft_capped),
    Variation(name="precision", guesses=stored.fewer_bits),
    # What has a free parameter.
    Variation(
        name="multiplier",
        stages=multipliers.STAGES,
        where=multipliers.is_declared,
        guesses=multipliers.measured_multiplier,
    ),
    _of_experts("shared-expert", experts.measured_part, where=experts.has_shared),
    Variation(name="factor", guesses=common.any_factor),
    Variation(name="factor", stages=_QKV, guesses=common.part_factor),
    Variation(name="rope-scaling", stages=turning.ROTATED, guesses=solved_rotary.other_frequencies),
    Variation(name="epsilon", where=norms.is_norm, guesses=norms.measured_epsilon),
    Variation(name="head-norm", stages=head_norms.STAGES, guesses=head_norms.measured_epsilon),
    Variation(name="clipped", guesses=stored.clipped),
    # What stands in another place.
    Variation(name="moved-tokens", guesses=common.moved_tokens),
    Variation(name="moved-heads", stages=_HEADED, guesses=common.moved_heads),
    Variation(name="moved-channels", where=projected.is_product, guesses=common.moved_channels),
    Variation(
        name="heads-before-tokens",
        stages=(*turning.ROTATED, "attn_scores", "attn_softmax", "attention"),
        guesses=common.heads_before_tokens,
    ),
    *cached.OF_A_BATCH,
    Variation(name="stale-cache", stages=("attn_scores",), guesses=common.stale_inputs),
    Variation(name="stale-cache", stages=("attention",), where=attend.is_apart, guesses=attend.stale_values),
    *cached.OF_SOME_KEYS,
    *table_rows.OF_THE_EMBEDDING,
    # What is wrong in one place alone.
    Variation(name="one-place", guesses=places.one_place_by_a_factor),
    Variation(
        name="one-input-channel",
        where=projected.is_product_of_all_tokens,
        guesses=projected.one_input_channel,
    ),
    _of_experts("one-expert", experts.one_expert),
    # What multiplies with weights again.
    _of_experts("swapped-gate-up", experts.swapped_gate_up),
    Variation(
        name="latent-norm",
        stages=("qkv_matmul", "q_up", "kv_up"),
        where=latents.has_norms,
        guesses=latents.other_norm,
        multiplies=True,
    ),
    Variation(name="norm-form", where=norms.is_norm_of_product, guesses=norms.of_product, multiplies=True),
    Variation(name="other-weights", stages=_REWEIGHED, guesses=projected.sibling_weights, multiplies=True),
    Variation(
        name="neighbour-weights", stages=_REWEIGHED, guesses=projected.neighbour_weights, multiplies=True
    ),
    Variation(
        name="transposed", where=projected.is_product, guesses=projected.transposed_weights, multiplies=True
    ),
    Variation(name="other-input", where=projected.is_product, guesses=projected.other_input, multiplies=True),
    MISREAD_WEIGHTS,
    Variation(name="weight-type", stages=_REWEIGHED, guesses=quantised.quantised_weights, multiplies=True),
    # What is wrong in one place alone, for no reason that is known.
    _of_experts("one-expert", experts.one_expert_somehow),
    Variation(name="one-place", guesses=places.one_place),
    # What fits much, and is named last.
    Variation(name="other-weight-vector", where=norms.is_norm, guesses=common.own_factor_per_channel),
    Variation(name="factor-per-token", guesses=common.own_factor_per_token),
    Variation(name="constant-offset", stages=(*biases.BIASED, *_RESIDUALS), guesses=common.constant_offset),
)
"""The closed table of causes, in the order in which they are tried."""
