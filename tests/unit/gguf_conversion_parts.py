"""What llama.cpp's conversion makes of one tensor of a checkpoint, where that is more than its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Config = Mapping[str, Any]
Parts = list[tuple[str, F32]]


def text_config(config: Config) -> Config:
    """Return the config of the text model, where a whole one sees too."""
    inner = config.get("text_config")
    return {**inner, "tie_word_embeddings": config["tie_word_embeddings"]} if inner else config


def of_text(tensors: Mapping[str, F32]) -> Mapping[str, F32]:
    """Return the tensors of the text model, under the names that it has alone."""
    names = {
        name: name.replace("model.language_model.", "model.") for name in tensors if "visual." not in name
    }
    return {usual: tensors[name] for name, usual in names.items()}


def usual_part(name: str, values: F32, config: Config) -> Parts:
    """Return a tensor whose name the map of the gguf package knows."""
    for own in ("e_score_correction_bias", "expert_bias"):
        if name.endswith(own):
            name = name.replace(own, {"expert_bias": "expert_bias.bias"}.get(own, "e_score_correction.bias"))
    return [(name, values)]


def together(name: str, values: F32, config: Config) -> F32:
    """Return GPT-NeoX's q|k|v of every head as q of all heads, k of all, v of all."""
    if "query_key_value" not in name:
        return values
    heads = config["num_attention_heads"]
    return values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


def granite_parts(name: str, values: F32, config: Config) -> Parts:
    """Return granitemoe's gate|up of all experts, or of the shared one, as two tensors."""
    if not name.endswith("input_linear.weight"):
        return usual_part(name, values, config)
    layer, kind = name.split(".")[2], "shexp" if "shared_mlp" in name else "exps"
    gate, up = np.split(values, 2, axis=-2)
    return [(f"blk.{layer}.ffn_gate_{kind}.weight", gate), (f"blk.{layer}.ffn_up_{kind}.weight", up)]


def turned_halves(name: str, values: F32, config: Config) -> Parts:
    """Return gate|up of all experts, [experts, in, out] in the checkpoint, as two of [experts, out, in]."""
    if name.endswith("experts.down_proj"):
        return [(f"{name}.weight", _turned(values, config, "moe"))]
    if not name.endswith("experts.gate_up_proj"):
        return usual_part(name, values, config)
    gate, up = np.split(_turned(values, config, "gate_up"), 2, axis=1)
    stem = name.removesuffix("gate_up_proj")
    return [(f"{stem}gate_proj.weight", gate), (f"{stem}up_proj.weight", up)]


def _turned(values: F32, config: Config, kind: str) -> F32:
    """Return [experts, out, in]; transformers saves those of Qwen3-VL so already."""
    width = config["hidden_size"] if kind == "gate_up" else config.get("moe_intermediate_size")
    return values if values.shape[2] == width else values.swapaxes(1, 2)


def gpt_oss_parts(name: str, values: F32, config: Config) -> Parts:
    """Return gate and up, which alternate in a checkpoint's columns, apart, and all as [experts, out, in]."""
    if name.endswith("sinks"):
        return [(f"{name}.weight", values)]
    stem, _, kind = name.partition("experts.")
    if not kind:
        return usual_part(name, values, config)
    bias = kind.endswith("_bias")
    values = values if bias else values.swapaxes(1, 2)
    end = ".bias" if bias else ".weight"
    if kind.startswith("down"):
        return [(f"{stem}experts.down_proj{end}", values)]
    gate, up = values[:, 0::2], values[:, 1::2]
    return [(f"{stem}experts.gate_proj{end}", gate), (f"{stem}experts.up_proj{end}", up)]


def deepseek_parts(name: str, values: F32, config: Config) -> Parts:
    """Return what makes k and v of the latent, apart: [heads, latent, dims] and [heads, dims, latent]."""
    if name == "lm_head.weight" and config["tie_word_embeddings"]:
        return []
    if not name.endswith("kv_b_proj.weight"):
        return usual_part(name, values, config)
    heads = values.reshape(config["num_attention_heads"], -1, values.shape[-1])
    k, v = np.split(heads, [config["qk_nope_head_dim"]], axis=1)
    stem = name.removesuffix("kv_b_proj.weight")
    return [(f"{stem}k_b_proj.weight", k.swapaxes(1, 2)), (f"{stem}v_b_proj.weight", v)]


def delta_parts(name: str, values: F32, config: Config) -> Parts:
    """Return Qwen3-Next's q|k|v|z key head by key head as q|k|v of all heads, and z; decay as it is used."""
    if name.endswith(".A_log"):
        return [(name, -np.exp(values))]
    if name.endswith(".dt_bias"):
        return [(name.replace(".dt_bias", ".dt_proj.bias"), values)]
    if name.endswith("in_proj_qkvz.weight"):
        heads, width = config["linear_num_key_heads"], config["linear_key_head_dim"]
        by_head = values.reshape(heads, -1, values.shape[-1])
        own = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
        q, k, v, z = np.split(by_head, np.cumsum([width, width, own]), axis=1)
        flat = [part.reshape(-1, values.shape[-1]) for part in (q, k, v, z)]
        layer = name.split(".")[2]
        return [
            (f"blk.{layer}.attn_qkv.weight", np.concatenate(flat[:3])),
            (f"blk.{layer}.attn_gate.weight", flat[3]),
        ]
    return turned_halves(name, values, config)
