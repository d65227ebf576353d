"""Small checkpoints as GGUF files, by the rules of llama.cpp's own conversion.

The names are those that the ``gguf`` package maps; keys, permutations and offsets are those of llama.cpp's
``conversion/`` for each architecture. Nothing of it comes from the package that is tested.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.unit.gguf_conversion_keys import (
    DEEPSEEK,
    DELTA,
    GRANITE,
    WINDOW,
    delta,
    ernie,
    exaone,
    latent,
    longrope,
    mixed_convolution,
    of_images,
    parallel,
    rope_of,
    sections,
    share,
    short_convolution,
    sigmoid,
    slides,
)
from tests.unit.gguf_conversion_parts import (
    F32,
    Config,
    deepseek_parts,
    delta_parts,
    gpt_oss_parts,
    granite_parts,
    of_text,
    text_config,
    together,
    turned_halves,
    usual_part,
)
from tests.unit.gguf_models import permuted_by_llama_cpp, write_gguf

_USUAL: Mapping[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers", "n_layer"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "vocab_size": ("vocab_size",),
}
"""Key of GGUF -> the key of config.json whose value it has: the first that is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one architecture is converted.

    Attributes:
        architecture: its name.
        further: key of GGUF -> key of config.json, beside the usual ones.
        fixed: key of GGUF -> what is made of the config.
        permuted: whether the rows of q and k are permuted.
        offset: whether 1 is added to norms.
        transposed: endings of the names of tensors that are transposed.
        tensor: makes of a tensor what is written, for what the words above do not say.
        parts: gives the tensors that one of the checkpoint becomes.
        headless: whether the output head is left out.
        plain_norms: endings of the names of norms to which nothing is added.

    """

    architecture: str
    further: Mapping[str, str] | None = None
    fixed: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    permuted: bool = False
    offset: bool = False
    transposed: tuple[str, ...] = ()
    tensor: Callable[[str, F32, Config], F32] = lambda name, values, config: values
    parts: Callable[[str, F32, Config], list[tuple[str, F32]]] = usual_part
    headless: bool = False
    plain_norms: tuple[str, ...] = ("/",)


RULES: Mapping[str, Rule] = {
    "llama": Rule(architecture="llama", permuted=True),
    "mixtral": Rule(architecture="llama", permuted=True),
    "granite": Rule(architecture="granite", further=GRANITE, permuted=True),
    "granitemoe": Rule(architecture="granitemoe", further=GRANITE, permuted=True, parts=granite_parts),
    "granitemoeshared": Rule(
        architecture="granitemoe",
        further={**GRANITE, "expert_shared_feed_forward_length": "shared_intermediate_size"},
        permuted=True,
        parts=granite_parts,
    ),
    "dots1": Rule(architecture="dots1", further=DEEPSEEK, fixed=lambda config: {"expert_gating_func": 2}),
    "glm4_moe": Rule(
        architecture="glm4moe",
        further=DEEPSEEK,
        fixed=lambda config: {**share(config), "expert_gating_func": 2},
    ),
    "olmo2": Rule(architecture="olmo2"),
    "olmo3": Rule(
        architecture="olmo2",
        further=WINDOW,
        fixed=lambda config: {"attention.sliding_window_pattern": slides(config)},
    ),
    "gemma": Rule(architecture="gemma", offset=True, headless=True),
    "gemma2": Rule(
        architecture="gemma2",
        further={
            **WINDOW,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        offset=True,
        headless=True,
    ),
    "gemma3_text": Rule(
        architecture="gemma3",
        further={**WINDOW, "final_logit_softcapping": "final_logit_softcapping"},
        offset=True,
    ),
    "phi3": Rule(architecture="phi3", fixed=longrope),
    "phi": Rule(architecture="phi2", fixed=share),
    "gpt2": Rule(
        architecture="gpt2",
        fixed=lambda config: {"feed_forward_length": 4 * config["n_embd"]},
        transposed=(".c_attn.weight", ".c_proj.weight", ".c_fc.weight"),
    ),
    "qwen3_moe": Rule(architecture="qwen3moe"),
    "qwen2_moe": Rule(architecture="qwen2moe"),
    "olmoe": Rule(architecture="olmoe"),
    "starcoder2": Rule(architecture="starcoder2"),
    "cohere": Rule(
        architecture="command-r",
        further={"logit_scale": "logit_scale"},
        fixed=lambda config: {"rope.scaling.type": "none"},
    ),
    "cohere2": Rule(
        architecture="cohere2",
        further={**WINDOW, "logit_scale": "logit_scale"},
        fixed=lambda config: {"rope.scaling.type": "none"},
    ),
    "gpt_neox": Rule(architecture="gptneox", fixed=parallel, tensor=together),
    "stablelm": Rule(architecture="stablelm", fixed=parallel),
    "nemotron": Rule(
        architecture="nemotron",
        further={"attention.layer_norm_epsilon": "norm_eps"},
        fixed=share,
        offset=True,
    ),
    "smollm3": Rule(architecture="smollm3", permuted=True),
    "arcee": Rule(architecture="arcee", permuted=True),
    "ernie4_5": Rule(architecture="ernie4_5"),
    "seed_oss": Rule(architecture="seed_oss"),
    "exaone4": Rule(
        architecture="exaone4",
        further=WINDOW,
        fixed=lambda config: {"attention.sliding_window_pattern": slides(config)},
    ),
    "glm4": Rule(architecture="glm4", fixed=share),
    "glm": Rule(architecture="chatglm", fixed=share),
    "jais2": Rule(architecture="jais2"),
    "gpt_oss": Rule(
        architecture="gpt-oss",
        further={**WINDOW, "expert_feed_forward_length": "intermediate_size"},
        parts=gpt_oss_parts,
    ),
    "minimax_m2": Rule(
        architecture="minimax-m2",
        further={"expert_feed_forward_length": "intermediate_size"},
        fixed=lambda config: {**share(config), "expert_gating_func": 2},
    ),
    "ernie4_5_moe": Rule(
        architecture="ernie4_5-moe",
        further={
            "expert_count": "moe_num_experts",
            "expert_used_count": "moe_k",
            "interleave_moe_layer_step": "moe_layer_interval",
            "leading_dense_block_count": "moe_layer_start_index",
            "expert_shared_count": "moe_num_shared_experts",
        },
        fixed=ernie,
    ),
    "lfm2": Rule(architecture="lfm2", further={"shortconv.l_cache": "conv_L_cache"}, fixed=short_convolution),
    "lfm2_moe": Rule(
        architecture="lfm2moe", further={"shortconv.l_cache": "conv_L_cache"}, fixed=mixed_convolution
    ),
    "llama4_text": Rule(
        architecture="llama4",
        further={
            "feed_forward_length": "intermediate_size_mlp",
            "expert_feed_forward_length": "intermediate_size",
            "interleave_moe_layer_step": "interleave_moe_layer_step",
        },
        parts=turned_halves,
    ),
    "qwen2_5_vl_text": Rule(architecture="qwen2vl", fixed=sections),
    "qwen3_vl_text": Rule(architecture="qwen3vl", fixed=of_images),
    "qwen3_vl_moe_text": Rule(architecture="qwen3vlmoe", fixed=of_images, parts=turned_halves),
    "exaone_moe": Rule(
        architecture="exaone-moe",
        further={
            **WINDOW,
            "expert_shared_count": "num_shared_experts",
            "expert_weights_norm": "norm_topk_prob",
            "expert_weights_scale": "routed_scaling_factor",
            "leading_dense_block_count": "first_k_dense_replace",
        },
        fixed=exaone,
    ),
    "deepseek_v2": Rule(architecture="deepseek2", further=DEEPSEEK, fixed=latent, parts=deepseek_parts),
    "deepseek_v3": Rule(architecture="deepseek2", further=DEEPSEEK, fixed=sigmoid, parts=deepseek_parts),
    "youtu": Rule(architecture="deepseek2", fixed=latent, parts=deepseek_parts),
    "qwen3_next": Rule(
        architecture="qwen3next",
        further=DELTA,
        fixed=delta,
        offset=True,
        parts=delta_parts,
        plain_norms=("linear_attn.norm.weight",),
    ),
}
"""``model_type`` -> how llama.cpp converts it."""


def metadata_of_config(config: Config, rule: Rule) -> dict[str, Any]:
    """Return what the conversion says of a model, with the architecture's prefix."""
    found = {
        key: value
        for key, names in _USUAL.items()
        if (value := next((config[name] for name in names if config.get(name) is not None), None)) is not None
    }
    found |= {key: config[name] for key, name in (rule.further or {}).items() if config.get(name) is not None}
    rope = rope_of(config)
    if "rope_theta" in rope:
        found["rope.freq_base"] = float(rope["rope_theta"])
    if "sliding_attention" in (config.get("rope_parameters") or {}):
        found["rope.freq_base_swa"] = float(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        betas = {f"rope.scaling.yarn_{name}": rope.get(name) for name in ("beta_fast", "beta_slow")}
        found |= {key: float(beta) for key, beta in betas.items() if beta is not None}
    found |= rule.fixed(config)
    return {f"{rule.architecture}.{key}": value for key, value in found.items()}


def _merged(tensors: Mapping[str, F32]) -> Iterator[tuple[str, F32]]:
    """Give the tensors, those of all experts of a layer as one, under the name that the map knows."""
    experts: dict[str, dict[int, F32]] = {}
    for name, values in tensors.items():
        if not re.search(r"\.experts\.\d", name):
            yield name, values
            continue
        before, _, after = name.partition(".experts.")
        expert, _, kind = after.partition(".")
        layer = before.split(".")[2]
        prefix = f"layers.{layer}.feed_forward" if kind.startswith("w") else before
        experts.setdefault(f"{prefix}.experts.{kind}", {})[int(expert)] = values
    for name, parts in experts.items():
        yield name, np.stack([parts[expert] for expert in sorted(parts)])


def convert(
    checkpoint: Path,
    target: Path,
    named: str | None = None,
    renamed: tuple[str, str] | None = None,
    **changed: Any,
) -> Path:
    """Write ``target``, a GGUF file of the HuggingFace directory ``checkpoint``.

    Args:
        checkpoint: config.json and one file of tensors.
        target: the file to write.
        named: the architecture that the file shall say it is, instead of its own.
        renamed: what stands in names of tensors, and what shall stand there instead.
        changed: keys of the metadata that are to have another value; dots are two underscores.

    """
    config = text_config(json.loads((checkpoint / "config.json").read_text()))
    rule = RULES[config["model_type"]]
    metadata = metadata_of_config(config, rule)
    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == rule.architecture)
    names = gguf.get_tensor_name_map(kind, metadata[f"{rule.architecture}.block_count"])
    tensors = {}
    for hf, values in _merged(of_text(load_file(checkpoint / "model.safetensors"))):
        if rule.headless and hf == "lm_head.weight":
            continue
        values = rule.tensor(hf, _changed(hf, values, rule, config), config)
        for name, part in rule.parts(hf, values, config):
            own = name if name.startswith("blk.") else names.get_name(name, (".weight", ".bias"))
            assert own is not None, name
            tensors[own] = np.ascontiguousarray(np.squeeze(part))
    rope = rope_of(config)
    if rope.get("rope_type") == "longrope":
        tensors["rope_factors_short.weight"] = np.array(rope["short_factor"], np.float32)
        tensors["rope_factors_long.weight"] = np.array(rope["long_factor"], np.float32)
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_divisors(config, rope)
    own_keys = {f"{rule.architecture}.{key.replace('__', '.')}": value for key, value in changed.items()}
    everything = {**metadata, **own_keys, "tokenizer.ggml.model": "no_vocab"}  # llama.cpp asks for one
    if renamed is not None:
        tensors = {name.replace(*renamed): values for name, values in tensors.items()}
    if named is not None:
        own = f"{rule.architecture}."
        everything = {key.replace(own, f"{named}.", 1): value for key, value in everything.items()}
    return write_gguf(target, tensors, everything, architecture=named or rule.architecture)


def _llama3_divisors(config: Config, rope: Config) -> F32:
    """Return what each pair's frequency is divided by: 1 where it turns fast, the factor where slowly."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    context, found = rope["original_max_position_embeddings"], []
    for pair in range(width // 2):
        length = 2 * math.pi * rope["rope_theta"] ** (2 * pair / width)
        if length < context / high:
            found.append(1.0)
        elif length > context / low:
            found.append(factor)
        else:
            smooth = (context / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def _changed(name: str, values: F32, rule: Rule, config: Config) -> F32:
    if rule.permuted and (".q_proj." in name or ".k_proj." in name):
        heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
        values = permuted_by_llama_cpp(values, heads)
    if rule.offset and name.endswith("norm.weight") and not name.endswith(rule.plain_norms):
        values = values + np.float32(1)
    return values.T if name.endswith(rule.transposed or ("/",)) else values
