"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, no gate, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import Gguf, layer_norm_eps
from apr_falsify.model.names import GGUF_FUSED_QKV, HF_GPT2, gguf_names
from apr_falsify.model.rope import Rope
from apr_falsify.model.settings import Config


def _settings(config: Config) -> Mapping[str, Any]:
    scale = config.head_dim**-0.5 if config.flag("scale_attn_weights") and config.head_dim > 0 else 1.0
    by_layer = config.flag("scale_attn_by_inverse_layer_idx")
    inner = config.get("intermediate_size")
    return {
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "intermediate": 4 * config.whole("hidden_size") if inner is None else inner,
        "rope": Rope(theta=1.0, kind="none"),
        "positions": config["max_position_embeddings"],
        "attn_scales": tuple(scale / (n + 1) if by_layer else scale for n in range(config.layers)),
    }


def _of_gguf(gguf: Gguf) -> Mapping[str, Any]:
    return {
        **layer_norm_eps(gguf),
        "rope": Rope(theta=1.0, kind="none"),
        "positions": (gguf.tensors["position_embd.weight"] or (0,))[0],
    }


GPT2 = Family(
    name="gpt2",
    title="GPT-2",
    model_types=("gpt2",),
    gguf_architectures=("gpt2",),
    weights=HF_GPT2,
    gguf_weights=gguf_names(HF_GPT2, GGUF_FUSED_QKV),
    gguf_settings=_of_gguf,
    layer=partial(decoder_layer, norm="layer_norm", gated=False, activation_at=".mlp.act"),
    ends=partial(decoder_ends, norm="layer_norm"),
    settings=_settings,
    fused=(("q", "k", "v"), ("q_bias", "k_bias", "v_bias")),
    transposed=("q", "k", "v", "o", "up", "down"),
    softmax_upcast=False,
    config_keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    config_defaults={
        "n_inner": None,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
    },
)
