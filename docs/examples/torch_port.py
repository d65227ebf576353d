"""A small port of Qwen2 to torch, with one bug: the imagined subject of docs/subjects/recording.md.

It knows nothing of apr-falsify: modules with names of its own, attention written out, a sum in place.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, weight, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight), eps

    def forward(self, x):
        """[tokens, hidden] to the same."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def linear(weight, bias=None):
    """A layer with these weights."""
    made = nn.Linear(*weight.shape[::-1], bias=bias is not None)
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias)
    return made


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, w, c, act):
        super().__init__()
        self.heads, self.kv, self.base = c["num_attention_heads"], c["num_key_value_heads"], c["rope_theta"]
        self.ln1 = Norm(w("input_layernorm.weight"), c["rms_norm_eps"])
        self.ln2 = Norm(w("post_attention_layernorm.weight"), c["rms_norm_eps"])
        self.wq, self.wk, self.wv = (
            linear(w(f"self_attn.{n}_proj.weight"), w(f"self_attn.{n}_proj.bias")) for n in "qkv"
        )
        self.wo = linear(w("self_attn.o_proj.weight"))
        self.w1, self.w3, self.w2 = (linear(w(f"mlp.{n}_proj.weight")) for n in ("gate", "up", "down"))
        self.act = act

    def turn(self, x):
        """Rotary embedding of [heads, tokens, size]."""
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[1])[:, None] / self.base ** (torch.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def mix(self, x):
        """Attention, before the output projection."""
        q, k, v = (
            w(x).view(len(x), n, -1).transpose(0, 1)
            for w, n in ((self.wq, self.heads), (self.wk, self.kv), (self.wv, self.kv))
        )
        q, k = self.turn(q), self.turn(k).repeat_interleave(self.heads // self.kv, 0)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~torch.ones(len(x), len(x), dtype=torch.bool).tril(), -torch.inf)
        mixed = scores.softmax(-1) @ v.repeat_interleave(self.heads // self.kv, 0)
        return mixed.transpose(0, 1).reshape(len(x), -1)

    def forward(self, x):
        """[tokens, hidden] to the same, in place."""
        x += self.wo(self.mix(self.ln1(x)))
        h = self.ln2(x)
        x += self.w2(self.act(self.w1(h)) * self.w3(h))
        return x


class Port(nn.Module):
    """The whole decoder. The bug is the default activation: Qwen2 has SiLU."""

    def __init__(self, model, act=None):
        super().__init__()
        c = json.loads((Path(model) / "config.json").read_text())
        w = {name: values.float() for name, values in load_file(Path(model) / "model.safetensors").items()}
        self.embed = nn.Embedding.from_pretrained(w["model.embed_tokens.weight"])
        self.blocks = nn.ModuleList(
            Block(lambda n, i=i: w[f"model.layers.{i}.{n}"], c, act or nn.GELU())
            for i in range(c["num_hidden_layers"])
        )
        self.norm, self.head = Norm(w["model.norm.weight"], c["rms_norm_eps"]), linear(w["lm_head.weight"])

    def forward(self, ids):
        """Ids [tokens] to logits [tokens, vocab]."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
