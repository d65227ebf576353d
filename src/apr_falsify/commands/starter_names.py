"""What programs call the stages: words met in public decoders, for proposals alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

HINTS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("embedding", "embed_tokens", "tok_embeddings", "wte", "embd", "inp_embd", "embeddings"),
    "attn_norm": ("attn_norm", "input_layernorm", "attention_norm", "ln1", "ln_1", "norm1", "pre_attn_norm"),
    "qkv_matmul": ("qkv_matmul", "qkv_nobias", "wqkv"),
    "qkv_matmul.q": ("q_matmul", "wq", "q_nobias", "q_raw"),
    "qkv_matmul.k": ("k_matmul", "wk", "k_nobias", "k_raw"),
    "qkv_matmul.v": ("v_matmul", "wv", "v_nobias", "v_raw"),
    "qkv_bias": ("qkv_bias", "qkv", "qkv_proj", "c_attn"),
    "qkv_bias.q": ("q", "q_proj", "query", "queries", "q_bias", "qcur"),
    "qkv_bias.k": ("k", "k_proj", "key", "keys", "k_bias", "kcur"),
    "qkv_bias.v": ("v", "v_proj", "value", "values", "v_bias", "vcur"),
    "q_latent": ("q_latent", "q_a", "q_a_proj", "q_lora"),
    "q_latent_norm": ("q_latent_norm", "q_a_norm", "q_a_layernorm"),
    "q_up": ("q_up", "q_b", "q_b_proj"),
    "kv_latent": ("kv_latent", "kv_cmpr", "compressed_kv", "c_kv"),
    "kv_latent_norm": ("kv_latent_norm", "kv_a_norm", "kv_a_layernorm", "kv_cmpr_normed"),
    "kv_up": ("kv_up", "kv_b", "kv_b_proj"),
    "k_shared": ("k_shared", "k_pe"),
    "k_rope": ("k_rope_shared", "k_pe_rotated"),
    "q_norm": ("q_norm", "qcur_normed", "q_normed"),
    "k_norm": ("k_norm", "kcur_normed", "k_normed"),
    "q_post_rope": ("q_post_rope", "q_rope", "q_rot", "q_rotated", "query_rotary", "q_embed", "xq"),
    "k_post_rope": ("k_post_rope", "k_rope", "k_rot", "k_rotated", "key_rotary", "k_embed", "xk"),
    "attn_scores_uncapped": ("attn_scores_uncapped", "scores_uncapped", "kq_uncapped"),
    "attn_scores": ("attn_scores", "scores", "kq", "qk", "att", "attn_logits", "logits_attn"),
    "attn_softmax": ("attn_softmax", "probs", "softmax", "attn_weights", "kq_soft_max", "attn_probs"),
    "attention": ("attention", "context", "ctx", "attn_values", "kqv", "kqv_out", "mixed", "z"),
    "attn_proj": ("attn_proj", "attn_o_proj"),
    "attn_out": ("attn_out", "o_proj", "attn_output", "wo", "proj", "self_attn", "c_proj"),
    "post_attn_residual": ("post_attn_residual", "resid_mid", "ffn_inp", "mid", "after_attn", "h"),
    "ffn_norm": ("ffn_norm", "post_attention_layernorm", "ln2", "ln_2", "norm2", "mlp_norm"),
    "ffn_gate": ("ffn_gate", "gate_proj", "gate", "w1"),
    "ffn_up": ("ffn_up", "up_proj", "up", "w3", "c_fc"),
    "ffn_silu": ("ffn_silu", "act", "silu", "act_fn", "activation", "gelu"),
    "ffn_swigl": ("ffn_swigl", "ffn_swiglu", "gated", "swiglu", "gate_up", "mlp_hidden"),
    "ffn_proj": ("ffn_proj", "mlp_down_proj"),
    "ffn_out": ("ffn_out", "down_proj", "down", "w2", "mlp", "mlp_out"),
    "post_ffn_residual": ("post_ffn_residual", "l_out", "out", "resid_post", "hidden_states", "h"),
    "router_logits": ("router_logits", "gate_logits", "routing_logits", "moe_logits"),
    "router_weights": ("router_weights", "routing_map", "combine_weights"),
    "moe_router": ("moe_router", "topk_weights", "routing_weights", "expert_weights"),
    "moe_ffn_out": ("moe_ffn_out", "moe_out", "experts_out"),
    "moe_router_indices": ("moe_router_indices", "topk_ids", "selected_experts", "expert_ids"),
    "final_norm": ("final_norm", "norm", "ln_f", "result_norm", "output_norm", "model_norm"),
    "lm_head_proj": ("lm_head_proj", "logits_uncapped", "logits_unscaled"),
    "lm_head": ("lm_head", "logits", "result_output", "output", "head"),
}  # fmt: skip
"""Stage, or its part that is q, k or v -> names that public programs give it."""

ALIKE = 0.75
"""From which similarity on a name supports a proposal."""

UNMISTAKABLE = 0.9
"""From which similarity on a name is not overruled by values."""


def likeness(pattern: str, target: str) -> float:
    """Return how like a name is to those of a stage: 1 for the same word, from its last parts alone."""
    tail = re.sub(r"^.*\{layer[^}]*\}", "", pattern).lower()
    words = [word for word in re.split(r"[^a-z0-9_]+", tail) if word]
    spoken = {"_".join(words[start:]).strip("_") for start in range(len(words))}
    return max(
        (difflib.SequenceMatcher(None, word, hint).ratio() for word in spoken for hint in HINTS[target]),
        default=0.0,
    )
