"""The port of numpy_port.py with a cache of keys and values, with one bug, recording each pass by itself.

The imagined subject of docs/phases.md: five tokens at once, then two more one by one.

    python docs/examples/cached_port.py MODEL_DIR DUMP.npz [--mended]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy_port import IDS, heads, norm
from safetensors.numpy import load_file

PASSES = [5, 1, 1]


def turn(x, base, start):
    """Rotary embedding of [heads, tokens, size], the first token at position start."""
    half = x.shape[-1] // 2
    angle = (start + np.arange(x.shape[1]))[:, None] / base ** (np.arange(half) / half)
    cos, sin = np.cos(angle).astype("f4"), np.sin(angle).astype("f4")
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v, cache, start, keep, mended):
    """Attention over what the cache holds. The bug: while decoding, a key is written once it was needed."""
    end, count = start + q.shape[1], len(q) // len(k)
    cache["v"][:, start:end] = v
    late = start > 0 and not mended
    if not late:
        cache["k"][:, start:end] = k
    held = [np.repeat(cache[name][:, :end], count, 0) for name in "kv"]
    att = keep("att", q @ held[0].transpose(0, 2, 1) / np.float32(q.shape[-1] ** 0.5))
    if late:
        cache["k"][:, start:end] = k
    seen = np.arange(end) <= start + np.arange(q.shape[1])[:, None]
    att = np.where(seen, att, np.float32(-np.inf))
    p = np.exp(att - att.max(-1, keepdims=True))
    p = keep("probs", p / p.sum(-1, keepdims=True))
    return (p @ held[1]).transpose(1, 0, 2).reshape(q.shape[1], -1)


def block(x, w, c, cache, start, keep, mended):
    """One decoder layer."""
    count, kv = c["num_attention_heads"], c["num_key_value_heads"]
    h = keep("ln1", norm(x, w("input_layernorm.weight"), c["rms_norm_eps"]))
    q, k, v = (keep(n, h @ w(f"self_attn.{n}_proj.weight").T + w(f"self_attn.{n}_proj.bias")) for n in "qkv")
    q = keep("q_rot", turn(heads(q, count), c["rope_theta"], start))
    k = keep("k_rot", turn(heads(k, kv), c["rope_theta"], start))
    mixed = keep("mixed", attend(q, k, heads(v, kv), cache, start, keep, mended))
    x = keep("mid", x + keep("proj", mixed @ w("self_attn.o_proj.weight").T))
    h = keep("ln2", norm(x, w("post_attention_layernorm.weight"), c["rms_norm_eps"]))
    gate = keep("w1", h @ w("mlp.gate_proj.weight").T)
    up = keep("w3", h @ w("mlp.up_proj.weight").T)
    gated = keep("gated", keep("act", gate / (1 + np.exp(-gate))) * up)
    return keep("out", x + keep("w2", gated @ w("mlp.down_proj.weight").T))


def main(model, dump, *options):
    """Run IDS in PASSES and write what was kept, ``step0/...`` for the first pass."""
    c = json.loads((Path(model) / "config.json").read_text())
    weights = {name: x.astype("f4") for name, x in load_file(Path(model) / "model.safetensors").items()}
    kept = {"ids": np.array(IDS)}
    kv, size = c["num_key_value_heads"], c["hidden_size"] // c["num_attention_heads"]
    layers = range(c["num_hidden_layers"])
    caches = [{name: np.zeros((kv, len(IDS), size), "f4") for name in "kv"} for _ in layers]

    def keeper(prefix):
        def keep(name, x):
            kept[prefix + name] = x
            return x

        return keep

    start = 0
    for step, count in enumerate(PASSES):
        keep = keeper(f"step{step}/")
        x = keep("wte", weights["model.embed_tokens.weight"][IDS[start : start + count]])
        for n in layers:
            names = f"model.layers.{n}."
            of_layer = {name.removeprefix(names): value for name, value in weights.items()}
            keep = keeper(f"step{step}/h{n}/")
            x = block(x, of_layer.__getitem__, c, caches[n], start, keep, "--mended" in options)
        keep = keeper(f"step{step}/")
        x = keep("ln_f", norm(x, weights["model.norm.weight"], c["rms_norm_eps"]))
        keep("logits", x @ weights["lm_head.weight"].T)
        start += count
    np.savez(dump, **kept)
    print(f"{len(kept)} arrays in {dump}")


if __name__ == "__main__":
    main(*sys.argv[1:])
