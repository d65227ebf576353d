"""Small checkpoints as GGUF files, by the rules of llama.cpp's own conversion.

The names are those that the ``gguf`` package maps; keys, permutations and offsets are those of llama.cpp's
``conversion/`` for each architecture. Nothing of it comes from the package that is tested.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from tests.unit.gguf_models import permuted_by_llama_cpp, write_gguf

F32 = npt.NDArray[np.float32]
Config = Mapping[str, Any]

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
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "vocab_size": ("vocab_size",),
}
"""Key of GGUF -> the key of config.json whose value it has: the first that is there."""

_GRANITE: Mapping[str, str] = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


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
        headless: whether the output head is left out.

    """

    architecture: str
    further: Mapping[str, str] | None = None
    fixed: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    permuted: bool = False
    offset: bool = False
    transposed: tuple[str, ...] = ()
    tensor: Callable[[str, F32, Config], F32] = lambda name, values, config: values
    headless: bool = False


def _slides(config: Config) -> list[bool]:
    return [kind == "sliding_attention" for kind in config["layer_types"]]


def _share(config: Config) -> Mapping[str, Any]:
    share = _rope(config).get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {"rope.dimension_count": int(share * width)}


def _parallel(config: Config) -> Mapping[str, Any]:
    return {**_share(config), "use_parallel_residual": config["use_parallel_residual"]}


def _longrope(config: Config) -> Mapping[str, Any]:
    rope, found = _rope(config), {**_share(config), "attention.sliding_window": config["sliding_window"] or 0}
    original = config["original_max_position_embeddings"]
    found["rope.scaling.original_context_length"] = original
    if rope["rope_type"] == "longrope":
        scale = config["max_position_embeddings"] / original
        found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original))
    return found


def _together(name: str, values: F32, config: Config) -> F32:
    """Return GPT-NeoX's q|k|v of every head as q of all heads, k of all, v of all."""
    if "query_key_value" not in name:
        return values
    heads = config["num_attention_heads"]
    return values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


_DEEPSEEK: Mapping[str, str] = {
    "expert_count": "n_routed_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_shared_count": "n_shared_experts",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
    "leading_dense_block_count": "first_k_dense_replace",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
RULES: Mapping[str, Rule] = {
    "llama": Rule(architecture="llama", permuted=True),
    "mixtral": Rule(architecture="llama", permuted=True),
    "granite": Rule(architecture="granite", further=_GRANITE, permuted=True),
    "granitemoe": Rule(architecture="granitemoe", further=_GRANITE, permuted=True),
    "granitemoeshared": Rule(
        architecture="granitemoe",
        further={**_GRANITE, "expert_shared_feed_forward_length": "shared_intermediate_size"},
        permuted=True,
    ),
    "dots1": Rule(architecture="dots1", further=_DEEPSEEK, fixed=lambda config: {"expert_gating_func": 2}),
    "glm4_moe": Rule(
        architecture="glm4moe",
        further=_DEEPSEEK,
        fixed=lambda config: {**_share(config), "expert_gating_func": 2},
    ),
    "olmo2": Rule(architecture="olmo2"),
    "olmo3": Rule(
        architecture="olmo2",
        further=_WINDOW,
        fixed=lambda config: {"attention.sliding_window_pattern": _slides(config)},
    ),
    "gemma": Rule(architecture="gemma", offset=True, headless=True),
    "gemma2": Rule(
        architecture="gemma2",
        further={
            **_WINDOW,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        offset=True,
        headless=True,
    ),
    "gemma3_text": Rule(
        architecture="gemma3",
        further={**_WINDOW, "final_logit_softcapping": "final_logit_softcapping"},
        offset=True,
    ),
    "phi3": Rule(architecture="phi3", fixed=_longrope),
    "phi": Rule(architecture="phi2", fixed=_share),
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
        further={**_WINDOW, "logit_scale": "logit_scale"},
        fixed=lambda config: {"rope.scaling.type": "none"},
    ),
    "gpt_neox": Rule(architecture="gptneox", fixed=_parallel, tensor=_together),
    "stablelm": Rule(architecture="stablelm", fixed=_parallel),
    "nemotron": Rule(architecture="nemotron", fixed=_share, offset=True),
    "smollm3": Rule(architecture="smollm3", permuted=True),
    "arcee": Rule(architecture="arcee", permuted=True),
    "ernie4_5": Rule(architecture="ernie4_5"),
    "seed_oss": Rule(architecture="seed_oss"),
    "exaone4": Rule(
        architecture="exaone4",
        further=_WINDOW,
        fixed=lambda config: {"attention.sliding_window_pattern": _slides(config)},
    ),
    "glm4": Rule(architecture="glm4", fixed=_share),
}
"""``model_type`` -> how llama.cpp converts it."""


def _rope(config: Config) -> Config:
    rope = config.get("rope_parameters") or {}
    return rope.get("full_attention", rope)


def metadata_of_config(config: Config, rule: Rule) -> dict[str, Any]:
    """Return what the conversion says of a model, with the architecture's prefix."""
    found = {
        key: value
        for key, names in _USUAL.items()
        if (value := next((config[name] for name in names if config.get(name) is not None), None)) is not None
    }
    found |= {key: config[name] for key, name in (rule.further or {}).items() if config.get(name) is not None}
    rope = _rope(config)
    if "rope_theta" in rope:
        found["rope.freq_base"] = float(rope["rope_theta"])
    if "sliding_attention" in (config.get("rope_parameters") or {}):
        found["rope.freq_base_swa"] = float(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    found |= rule.fixed(config)
    return {f"{rule.architecture}.{key}": value for key, value in found.items()}


def _merged(tensors: Mapping[str, F32]) -> Iterator[tuple[str, F32]]:
    """Give the tensors, those of all experts of a layer as one, under the name that the map knows."""
    experts: dict[str, dict[int, F32]] = {}
    for name, values in tensors.items():
        if ".experts." not in name:
            yield name, values
            continue
        before, _, after = name.partition(".experts.")
        expert, _, kind = after.partition(".")
        layer = before.split(".")[2]
        prefix = f"layers.{layer}.feed_forward" if "block_sparse_moe" in before else before
        experts.setdefault(f"{prefix}.experts.{kind}", {})[int(expert)] = values
    for name, parts in experts.items():
        yield name, np.stack([parts[expert] for expert in sorted(parts)])


def _halves(name: str, values: F32) -> list[tuple[str, F32]]:
    """Return granitemoe's gate|up of all experts, or of the shared one, as two tensors."""
    if not name.endswith("input_linear.weight"):
        return [(name.replace("e_score_correction_bias", "e_score_correction.bias"), values)]
    layer, kind = name.split(".")[2], "shexp" if "shared_mlp" in name else "exps"
    gate, up = np.split(values, 2, axis=-2)
    return [(f"blk.{layer}.ffn_gate_{kind}.weight", gate), (f"blk.{layer}.ffn_up_{kind}.weight", up)]


def convert(checkpoint: Path, target: Path, **changed: Any) -> Path:
    """Write ``target``, a GGUF file of the HuggingFace directory ``checkpoint``.

    Args:
        checkpoint: config.json and one file of tensors.
        target: the file to write.
        changed: keys of the metadata that are to have another value; dots are two underscores.

    """
    config = json.loads((checkpoint / "config.json").read_text())
    rule = RULES[config["model_type"]]
    metadata = metadata_of_config(config, rule)
    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == rule.architecture)
    names = gguf.get_tensor_name_map(kind, metadata[f"{rule.architecture}.block_count"])
    tensors = {}
    for hf, values in _merged(load_file(checkpoint / "model.safetensors")):
        if rule.headless and hf == "lm_head.weight":
            continue
        values = rule.tensor(hf, _changed(hf, values, rule, config), config)
        for name, part in _halves(hf, values):
            own = name if name.startswith("blk.") else names.get_name(name, (".weight", ".bias"))
            assert own is not None, name
            tensors[own] = np.ascontiguousarray(part)
    rope = _rope(config)
    if rope.get("rope_type") == "longrope":
        tensors["rope_factors_short.weight"] = np.array(rope["short_factor"], np.float32)
        tensors["rope_factors_long.weight"] = np.array(rope["long_factor"], np.float32)
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_divisors(config, rope)
    own_keys = {f"{rule.architecture}.{key.replace('__', '.')}": value for key, value in changed.items()}
    return write_gguf(target, tensors, {**metadata, **own_keys}, architecture=rule.architecture)


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
    if rule.offset and name.endswith("norm.weight"):
        values = values + np.float32(1)
    return values.T if name.endswith(rule.transposed or ("/",)) else values
