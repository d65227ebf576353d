"""GPT-NeoX (Black et al. 2022), Pythia: parallel layers with a norm for each block, q|k|v head by head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import layer_norm_eps
from apr_falsify.model.names import GGUF_FUSED_QKV, gguf_names
from apr_falsify.model.settings import Config

_LAYER = "gpt_neox.layers.{n}."
_MODULES: Mapping[str, str] = {
    "attn_norm": _LAYER + "input_layernorm",
    "q": _LAYER + "attention.query_key_value",
    "k": _LAYER + "attention.query_key_value",
    "v": _LAYER + "attention.query_key_value",
    "o": _LAYER + "attention.dense",
    "ffn_norm": _LAYER + "post_attention_layernorm",
    "up": _LAYER + "mlp.dense_h_to_4h",
    "down": _LAYER + "mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
}


def _settings(config: Config) -> Mapping[str, Any]:
    biased = config.flag("attention_bias")
    return {
        "kv_heads": config["num_attention_heads"],
        "qkv_bias": biased,
        "output_bias": biased,
        "mlp_bias": True,
        "parallel": config.flag("use_parallel_residual"),
    }


_NAMES: Mapping[str, str] = {
    "embed": "gpt_neox.embed_in.weight",
    **{role: f"{module}.weight" for role, module in _MODULES.items()},
    **{f"{role}_bias": f"{module}.bias" for role, module in _MODULES.items()},
    "lm_head": "embed_out.weight",
}

GPT_NEOX = Family(
    name="gpt_neox",
    title="GPT-NeoX / Pythia",
    model_types=("gpt_neox",),
    gguf_architectures=("gptneox",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES, GGUF_FUSED_QKV),  # conversion puts q, k and v one below the other
    gguf_settings=lambda gguf: {
        **layer_norm_eps(gguf),
        "parallel": gguf.flag("use_parallel_residual", True),
    },
    layer=partial(decoder_layer, norm="layer_norm", one_norm=False, gated=False, activation_at=".mlp.act"),
    ends=partial(decoder_ends, norm="layer_norm"),
    settings=_settings,
    partial_rotary=True,
    fused=(("q", "k", "v"), ("q_bias", "k_bias", "v_bias")),
    fused_by_head=True,
    config_keys={
        "rms_norm_eps": "layer_norm_eps",
        "rope_theta": "rotary_emb_base",
        "partial_rotary_factor": "rotary_pct",
    },
    config_defaults={
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "attention_bias": True,
        "use_parallel_residual": True,
    },
)
