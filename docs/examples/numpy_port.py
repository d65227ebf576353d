"""A small port of Qwen2 to NumPy, with one bug, that records what it computes.

The imagined subject of docs/porting.md: it knows nothing of apr-falsify, and has names and orders of axes
of its own.

    python docs/examples/numpy_port.py MODEL_DIR DUMP.npz [--fixed]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

IDS = [274, 272, 223, 20, 13, 20, 33]


def norm(x, weight, eps):
    """RMSNorm."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def heads(x, count):
    """[tokens, width] -> [heads, tokens, size]."""
    return x.reshape(len(x), count, -1).transpose(1, 0, 2)


def turn(x, base):
    """Rotary embedding of [heads, tokens, size]."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] / base ** (np.arange(half) / half)
    cos, sin = np.cos(angle).astype("f4"), np.sin(angle).astype("f4")
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def share(x, groups, fixed):
    """Give query heads their kv head. The bug: tile gives head 1 the second one, repeat the first."""
    return np.repeat(x, groups, 0) if fixed else np.tile(x, (groups, 1, 1))


def block(x, w, c, keep, fixed):
    """One decoder layer."""
    count, kv = c["num_attention_heads"], c["num_key_value_heads"]
    h = keep("ln1", norm(x, w("input_layernorm.weight"), c["rms_norm_eps"]))
    q, k, v = (keep(f"w{n}", h @ w(f"self_attn.{n}_proj.weight").T) for n in "qkv")
    q, k, v = (keep(n, y + w(f"self_attn.{n}_proj.bias")) for n, y in zip("qkv", (q, k, v), strict=True))
    q = keep("q_rot", turn(heads(q, count), c["rope_theta"]))
    k = keep("k_rot", turn(heads(k, kv), c["rope_theta"]))
    k, v = np.repeat(k, count // kv, 0), share(heads(v, kv), count // kv, fixed)
    att = q @ k.transpose(0, 2, 1) / np.float32(q.shape[-1] ** 0.5)
    keep("att", att.transpose(0, 2, 1))
    att = np.where(np.tri(len(x), dtype=bool), att, np.float32(-np.inf))
    p = np.exp(att - att.max(-1, keepdims=True))
    p = keep("probs", p / p.sum(-1, keepdims=True))
    mixed = keep("mixed", (p @ v).transpose(1, 0, 2).reshape(len(x), -1))
    x = keep("mid", x + keep("proj", mixed @ w("self_attn.o_proj.weight").T))
    h = keep("ln2", norm(x, w("post_attention_layernorm.weight"), c["rms_norm_eps"]))
    gate = keep("w1", h @ w("mlp.gate_proj.weight").T)
    up = keep("w3", h @ w("mlp.up_proj.weight").T)
    gated = keep("gated", keep("act", gate / (1 + np.exp(-gate))) * up)
    return keep("out", x + keep("w2", gated @ w("mlp.down_proj.weight").T))


def main(model, dump, *options):
    """Run IDS and write what was saved."""
    c = json.loads((Path(model) / "config.json").read_text())
    weights = {name: x.astype("f4") for name, x in load_file(Path(model) / "model.safetensors").items()}
    kept = {"ids": np.array(IDS), "seconds": np.float32(0.0)}

    def keeper(prefix):
        def keep(name, x):
            kept[prefix + name] = x
            return x

        return keep

    keep = keeper("")
    x = keep("wte", weights["model.embed_tokens.weight"][IDS])
    for n in range(c["num_hidden_layers"]):
        names = f"model.layers.{n}."
        of_layer = {name.removeprefix(names): value for name, value in weights.items()}
        x = block(x, of_layer.__getitem__, c, keeper(f"h{n}/"), "--fixed" in options)
    x = keep("ln_f", norm(x, weights["model.norm.weight"], c["rms_norm_eps"]))
    keep("logits", x @ weights["lm_head.weight"].T)
    np.savez(dump, **kept)
    print(f"{len(kept)} arrays in {dump}")


if __name__ == "__main__":
    main(*sys.argv[1:])
