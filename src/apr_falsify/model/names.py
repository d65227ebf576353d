"""What weights there are, by role, and how model families name them.

A name is that of a tensor, with ``{n}`` for the layer and ``{e}`` for the expert.
Names are those of the published checkpoints of each family (transformers 5) and of the GGUF
specification. Roles that share one name lie in one tensor, as ``families/`` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from apr_falsify.model.stages import STAGES, Scope


class WeightRole(NamedTuple):
    """What a tensor of weights is for.

    Attributes:
        axes: its shape, in the axis words of ``stages.py``.
        stage: the (first) stage that uses it.
        alike: the roles of the same shape whose tensors may stand in its place by mistake.

    """

    axes: tuple[str, ...]
    stage: str
    alike: tuple[str, ...] = ()

    @property
    def is_of_a_layer(self) -> bool:
        """Whether each layer has its own; else there is one in the model."""
        return STAGES[self.stage].scope is Scope.LAYER


ROLES: Mapping[str, WeightRole] = {
    "embed": WeightRole(("vocab", "hidden"), "embedding"),
    "positions": WeightRole(("positions", "hidden"), "embedding"),
    "attn_norm": WeightRole(("hidden",), "attn_norm", ("ffn_norm", "final_norm")),
    "attn_norm_bias": WeightRole(("hidden",), "attn_norm"),
    "q": WeightRole(("q", "hidden"), "qkv_matmul"),
    "k": WeightRole(("kv", "hidden"), "qkv_matmul", ("v",)),
    "v": WeightRole(("v", "hidden"), "qkv_matmul", ("k",)),
    # Of latent attention: down to a latent, its norm, up to the heads; and the part of k that heads share.
    "q_a": WeightRole(("q_latent", "hidden"), "qkv_matmul"),
    "q_a_bias": WeightRole(("q_latent",), "qkv_matmul"),
    "q_a_norm": WeightRole(("q_latent",), "qkv_matmul"),
    "q_b": WeightRole(("q", "q_latent"), "qkv_matmul"),
    "kv_a": WeightRole(("kv_latent", "hidden"), "qkv_matmul"),
    "kv_a_bias": WeightRole(("kv_latent",), "qkv_matmul"),
    "k_rope": WeightRole(("rotary", "hidden"), "qkv_matmul"),
    "k_rope_bias": WeightRole(("rotary",), "qkv_matmul"),
    "kv_a_norm": WeightRole(("kv_latent",), "qkv_matmul"),
    "kv_b": WeightRole(("kv_up", "kv_latent"), "qkv_matmul"),
    "q_bias": WeightRole(("q",), "qkv_bias"),
    "k_bias": WeightRole(("kv",), "qkv_bias", ("v_bias",)),
    "v_bias": WeightRole(("v",), "qkv_bias", ("k_bias",)),
    # Of one head; ("q",) and ("kv",) where a family norms all heads as one.
    "q_norm": WeightRole(("head_dim",), "q_post_rope", ("k_norm",)),
    "k_norm": WeightRole(("head_dim",), "k_post_rope", ("q_norm",)),
    "sinks": WeightRole(("heads",), "attn_softmax"),
    "attn_gate": WeightRole(("q", "hidden"), "attn_gate", ("q",)),
    "attn_gate_bias": WeightRole(("q",), "attn_gate", ("q_bias",)),
    "scan_qkv": WeightRole(("conv", "hidden"), "scan_qkv"),
    "scan_z": WeightRole(("scan", "hidden"), "scan_gate"),
    "scan_z_bias": WeightRole(("scan",), "scan_gate"),
    "scan_xbc": WeightRole(("conv", "hidden"), "scan_xbc"),
    "scan_xbc_bias": WeightRole(("conv",), "scan_xbc"),
    "scan_dt": WeightRole(("scan_heads", "hidden"), "dt_logits"),
    "scan_dt_bias": WeightRole(("scan_heads",), "dt_logits"),
    "dt_shift": WeightRole(("scan_heads",), "dt", ("decay_log", "scan_skip")),
    "scan_b": WeightRole(("scan_heads", "hidden"), "beta_logits", ("scan_a",)),
    "scan_a": WeightRole(("scan_heads", "hidden"), "decay_logits", ("scan_b",)),
    "conv_proj": WeightRole(("conv_parts", "hidden"), "conv_proj"),
    "conv_proj_bias": WeightRole(("conv_parts",), "conv_proj"),
    "conv": WeightRole(("conv", "one", "conv_kernel"), "conv_out"),
    "conv_bias": WeightRole(("conv",), "conv_out"),
    "decay_log": WeightRole(("scan_heads",), "decay", ("decay_shift",)),
    "decay_shift": WeightRole(("scan_heads",), "decay", ("decay_log",)),
    "scan_skip": WeightRole(("scan_heads",), "scan_out", ("dt_shift",)),
    "scan_norm": WeightRole(("scan_dim",), "scan_norm"),
    "scan_o": WeightRole(("hidden", "scan"), "attn_out"),
    "scan_o_bias": WeightRole(("hidden",), "attn_out"),
    "conv_o": WeightRole(("hidden", "conv"), "attn_out"),
    "conv_o_bias": WeightRole(("hidden",), "attn_out"),
    "o": WeightRole(("hidden", "mixed"), "attn_out"),
    "o_bias": WeightRole(("hidden",), "attn_out"),
    "attn_post_norm": WeightRole(("hidden",), "attn_out"),
    "ffn_norm": WeightRole(("hidden",), "ffn_norm", ("attn_norm", "final_norm")),
    "ffn_norm_bias": WeightRole(("hidden",), "ffn_norm"),
    "gate": WeightRole(("ffn", "hidden"), "ffn_gate", ("up",)),
    "gate_bias": WeightRole(("ffn",), "ffn_gate"),
    "up": WeightRole(("ffn", "hidden"), "ffn_up", ("gate",)),
    "up_bias": WeightRole(("ffn",), "ffn_up"),
    "down": WeightRole(("hidden", "ffn"), "ffn_out"),
    "down_bias": WeightRole(("hidden",), "ffn_out"),
    "ffn_post_norm": WeightRole(("hidden",), "ffn_out"),
    "router": WeightRole(("experts", "hidden"), "moe_router_indices"),
    "router_correction": WeightRole(("experts",), "moe_router_indices"),
    "router_bias": WeightRole(("experts",), "moe_router_indices"),
    "expert_gate_bias": WeightRole(("expert_ffn",), "ffn_out"),
    "expert_up_bias": WeightRole(("expert_ffn",), "ffn_out"),
    "expert_down_bias": WeightRole(("hidden",), "ffn_out"),
    "expert_gate": WeightRole(("expert_ffn", "hidden"), "ffn_out"),
    "expert_up": WeightRole(("expert_ffn", "hidden"), "ffn_out"),
    "expert_down": WeightRole(("hidden", "expert_ffn"), "ffn_out"),
    "shared_gate": WeightRole(("shared_ffn", "hidden"), "ffn_out"),
    "shared_up": WeightRole(("shared_ffn", "hidden"), "ffn_out"),
    "shared_down": WeightRole(("hidden", "shared_ffn"), "ffn_out"),
    "shared_router": WeightRole(("one", "hidden"), "ffn_out"),
    "final_norm": WeightRole(("hidden",), "final_norm", ("attn_norm", "ffn_norm")),
    "final_norm_bias": WeightRole(("hidden",), "final_norm"),
    "lm_head": WeightRole(("vocab", "hidden"), "lm_head", ("embed",)),
    "lm_head_bias": WeightRole(("vocab",), "lm_head"),
}
"""Every role of weights, in forward order."""

ROLE_AXES: Mapping[str, tuple[str, ...]] = {name: role.axes for name, role in ROLES.items()}

_HF_LAYER = "model.layers.{n}."
HF_DECODER: Mapping[str, str] = {
    "embed": "model.embed_tokens.weight",
    "attn_norm": _HF_LAYER + "input_layernorm.weight",
    "q": _HF_LAYER + "self_attn.q_proj.weight",
    "k": _HF_LAYER + "self_attn.k_proj.weight",
    "v": _HF_LAYER + "self_attn.v_proj.weight",
    "q_bias": _HF_LAYER + "self_attn.q_proj.bias",
    "k_bias": _HF_LAYER + "self_attn.k_proj.bias",
    "v_bias": _HF_LAYER + "self_attn.v_proj.bias",
    "o": _HF_LAYER + "self_attn.o_proj.weight",
    "o_bias": _HF_LAYER + "self_attn.o_proj.bias",
    "ffn_norm": _HF_LAYER + "post_attention_layernorm.weight",
    "gate": _HF_LAYER + "mlp.gate_proj.weight",
    "gate_bias": _HF_LAYER + "mlp.gate_proj.bias",
    "up": _HF_LAYER + "mlp.up_proj.weight",
    "up_bias": _HF_LAYER + "mlp.up_proj.bias",
    "down": _HF_LAYER + "mlp.down_proj.weight",
    "down_bias": _HF_LAYER + "mlp.down_proj.bias",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}
HF_NORM_BIASES: Mapping[str, str] = {
    "attn_norm_bias": _HF_LAYER + "input_layernorm.bias",
    "ffn_norm_bias": _HF_LAYER + "post_attention_layernorm.bias",
    "final_norm_bias": "model.norm.bias",
}
"""What a LayerNorm has beside them."""
HF_QK_NORM: Mapping[str, str] = {
    "q_norm": _HF_LAYER + "self_attn.q_norm.weight",
    "k_norm": _HF_LAYER + "self_attn.k_norm.weight",
}
GGUF_NAMES: Mapping[str, str] = {
    "embed": "token_embd.weight",
    "positions": "position_embd.weight",
    **{
        f"{role}{suffix}": f"blk.{{n}}.{module}.{kind}"
        for role, module in {
            "attn_norm": "attn_norm",
            "q": "attn_q",
            "k": "attn_k",
            "v": "attn_v",
            "q_norm": "attn_q_norm",
            "k_norm": "attn_k_norm",
            "o": "attn_output",
            "attn_post_norm": "post_attention_norm",
            "ffn_norm": "ffn_norm",
            "gate": "ffn_gate",
            "up": "ffn_up",
            "down": "ffn_down",
            "ffn_post_norm": "post_ffw_norm",
            "router": "ffn_gate_inp",
            "expert_gate": "ffn_gate_exps",
            "expert_up": "ffn_up_exps",
            "expert_down": "ffn_down_exps",
            "shared_gate": "ffn_gate_shexp",
            "shared_up": "ffn_up_shexp",
            "shared_down": "ffn_down_shexp",
            "shared_router": "ffn_gate_inp_shexp",
            "q_a": "attn_q_a",
            "q_a_norm": "attn_q_a_norm",
            "q_b": "attn_q_b",
            "kv_a": "attn_kv_a_mqa",
            "k_rope": "attn_kv_a_mqa",
            "kv_a_norm": "attn_kv_a_norm",
            "kv_b": "attn_kv_b",
            "conv": "shortconv.conv",
            "conv_proj": "shortconv.in_proj",
            "conv_o": "shortconv.out_proj",
        }.items()
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    },
    "sinks": "blk.{n}.attn_sinks.weight",
    "router_correction": "blk.{n}.exp_probs_b.bias",
    "final_norm": "output_norm.weight",
    "final_norm_bias": "output_norm.bias",
    "lm_head": "output.weight",
    "lm_head_bias": "output.bias",
}
"""Role -> what llama.cpp calls its tensor in nearly every architecture; all experts lie in one tensor."""


def gguf_names(weights: Mapping[str, str], changed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what llama.cpp calls the tensors of the roles of ``weights``.

    Args:
        weights: role -> name in a HuggingFace checkpoint.
        changed: role -> module within a layer, where an architecture calls it otherwise.

    """
    own = {
        f"{role}{suffix}": f"blk.{{n}}.{module}.{kind}"
        for role, module in (changed or {}).items()
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    }
    return {role: own.get(role, GGUF_NAMES[role]) for role in weights}


GGUF_FUSED_QKV: Mapping[str, str] = dict.fromkeys("qkv", "attn_qkv")
GGUF_FUSED_GATE_UP: Mapping[str, str] = dict.fromkeys(("gate", "up"), "ffn_up")
"""What llama.cpp calls what lies in one tensor."""


def without(names: Mapping[str, str], *roles: str) -> dict[str, str]:
    """Return ``names`` without some roles."""
    return {role: name for role, name in names.items() if role not in roles}


_FUSED_QKV = _HF_LAYER + "self_attn.qkv_proj.weight"
_FUSED_GATE_UP = _HF_LAYER + "mlp.gate_up_proj.weight"
HF_PHI3: Mapping[str, str] = {
    **{role: name for role, name in HF_DECODER.items() if not role.endswith("_bias")},
    "q": _FUSED_QKV,
    "k": _FUSED_QKV,
    "v": _FUSED_QKV,
    "gate": _FUSED_GATE_UP,
    "up": _FUSED_GATE_UP,
}
MLP_BIASES = ("gate_bias", "up_bias", "down_bias")
HF_GEMMA2: Mapping[str, str] = {
    **{role: name for role, name in HF_DECODER.items() if role not in MLP_BIASES},
    "attn_post_norm": _HF_LAYER + "post_attention_layernorm.weight",
    "ffn_norm": _HF_LAYER + "pre_feedforward_layernorm.weight",
    "ffn_post_norm": _HF_LAYER + "post_feedforward_layernorm.weight",
}
HF_MIXTURE: Mapping[str, str] = {
    "router": _HF_LAYER + "mlp.gate.weight",
    "expert_gate": _HF_LAYER + "mlp.experts.{e}.gate_proj.weight",
    "expert_up": _HF_LAYER + "mlp.experts.{e}.up_proj.weight",
    "expert_down": _HF_LAYER + "mlp.experts.{e}.down_proj.weight",
}
HF_SHARED_EXPERTS: Mapping[str, str] = {
    "shared_gate": _HF_LAYER + "mlp.shared_experts.gate_proj.weight",
    "shared_up": _HF_LAYER + "mlp.shared_experts.up_proj.weight",
    "shared_down": _HF_LAYER + "mlp.shared_experts.down_proj.weight",
}
HF_CORRECTED_MIXTURE: Mapping[str, str] = {
    **HF_MIXTURE,
    **HF_SHARED_EXPERTS,
    "router_correction": _HF_LAYER + "mlp.gate.e_score_correction_bias",
}
"""Those of DeepSeek-V3 and of all that took its router over."""
HF_LATENT: Mapping[str, str] = {
    "q_a": _HF_LAYER + "self_attn.q_a_proj.weight",
    "q_a_bias": _HF_LAYER + "self_attn.q_a_proj.bias",
    "q_a_norm": _HF_LAYER + "self_attn.q_a_layernorm.weight",
    "q_b": _HF_LAYER + "self_attn.q_b_proj.weight",
    "kv_a": _HF_LAYER + "self_attn.kv_a_proj_with_mqa.weight",
    "kv_a_bias": _HF_LAYER + "self_attn.kv_a_proj_with_mqa.bias",
    "k_rope": _HF_LAYER + "self_attn.kv_a_proj_with_mqa.weight",
    "k_rope_bias": _HF_LAYER + "self_attn.kv_a_proj_with_mqa.bias",
    "kv_a_norm": _HF_LAYER + "self_attn.kv_a_layernorm.weight",
    "kv_b": _HF_LAYER + "self_attn.kv_b_proj.weight",
}
"""Those of latent attention, with q directly (``HF_DECODER["q"]``) or by way of a latent."""
HF_LATENT_DECODER: Mapping[str, str] = {
    **without(HF_DECODER, "k", "v", "q_bias", "k_bias", "v_bias", *MLP_BIASES),
    **HF_LATENT,
}
GGUF_LATENT_BIASES = ("q_a_bias", "kv_a_bias", "k_rope_bias", "o_bias")
"""What llama.cpp has no tensor for."""
LATENT_FUSED = (("kv_a", "k_rope"), ("kv_a_bias", "k_rope_bias"))
"""What lies one below the other in its tensors."""

_GPT2_LAYER = "transformer.h.{n}."
_GPT2_MODULES: Mapping[str, str] = {
    "attn_norm": _GPT2_LAYER + "ln_1",
    "q": _GPT2_LAYER + "attn.c_attn",
    "k": _GPT2_LAYER + "attn.c_attn",
    "v": _GPT2_LAYER + "attn.c_attn",
    "o": _GPT2_LAYER + "attn.c_proj",
    "ffn_norm": _GPT2_LAYER + "ln_2",
    "up": _GPT2_LAYER + "mlp.c_fc",
    "down": _GPT2_LAYER + "mlp.c_proj",
    "final_norm": "transformer.ln_f",
}
HF_GPT2: Mapping[str, str] = {
    "embed": "transformer.wte.weight",
    "positions": "transformer.wpe.weight",
    **{role: f"{module}.weight" for role, module in _GPT2_MODULES.items()},
    **{f"{role}_bias": f"{module}.bias" for role, module in _GPT2_MODULES.items()},
    "lm_head": "lm_head.weight",
}
