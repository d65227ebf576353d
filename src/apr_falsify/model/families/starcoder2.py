"""StarCoder2 (Lozhkov et al. 2024): LayerNorm, no gate, biases everywhere, and a rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from apr_falsify.model.blocks import decoder_ends, decoder_layer
from apr_falsify.model.family import Family
from apr_falsify.model.gguf_settings import layer_norm_eps
from apr_falsify.model.names import HF_DECODER, HF_NORM_BIASES, gguf_names, without
from apr_falsify.model.settings import Config, window_everywhere

_MLP = "model.layers.{n}.mlp."


def _settings(config: Config) -> Mapping[str, Any]:
    biased = config.flag("use_bias")
    return {
        "qkv_bias": biased,
        "output_bias": biased,
        "mlp_bias": biased,
        "windows": window_everywhere(config),
    }


_NAMES: Mapping[str, str] = {
    **without(HF_DECODER, "gate", "gate_bias"),
    **HF_NORM_BIASES,
    "up": _MLP + "c_fc.weight",
    "up_bias": _MLP + "c_fc.bias",
    "down": _MLP + "c_proj.weight",
    "down_bias": _MLP + "c_proj.bias",
}

STARCODER2 = Family(
    name="starcoder2",
    title="StarCoder2",
    model_types=("starcoder2",),
    gguf_architectures=("starcoder2",),
    weights=_NAMES,
    gguf_weights=gguf_names(_NAMES),
    gguf_settings=layer_norm_eps,
    layer=partial(decoder_layer, norm="layer_norm", gated=False, activation_at=".mlp.act"),
    ends=partial(decoder_ends, norm="layer_norm"),
    settings=_settings,
    config_keys={"rms_norm_eps": "norm_epsilon"},
    config_defaults={
        "num_key_value_heads": 2,
        "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "tie_word_embeddings": True,
    },
)
