"""What the exam runs on: models, number formats and arithmetics, tokens. Tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from apr_falsify.exam.quantised import SCHEMES
from apr_falsify.numerics.arithmetic import format_named
from apr_falsify.numerics.operand_rules import RULES, Operation, Rule

_BASE: Mapping[str, Any] = {
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "float32",
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A kind of model.

    Attributes:
        name: what tables call it.
        config: its config.json; empty for a model that exists already.
        kinds: the GGUF formats in which it can be written.
        wide: whether it has a real model's width; then it is drawn as blocks, and in no other formats.

    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    wide: bool = False


BLUEPRINTS: Mapping[str, Blueprint] = {
    row.name: row
    for row in (
        Blueprint(name="tiny-qwen2", kinds=("q4_0", "q4_1", "q8_0", "q4_k")),
        Blueprint(
            name="qwen2-like",
            config={
                **_BASE,
                "architectures": ["Qwen2ForCausalLM"],
                "model_type": "qwen2",
                "hidden_size": 128,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "intermediate_size": 160,
                "rope_theta": 100000.0,
                "use_sliding_window": False,
            },
            kinds=("q4_0", "q8_0"),
        ),
        Blueprint(
            name="llama-like",
            config={
                **_BASE,
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "intermediate_size": 192,
                "rope_theta": 500000.0,
                "rope_scaling": _LLAMA3,
            },
            kinds=("q4_0", "q4_1", "q8_0"),
        ),
        Blueprint(
            name="qwen3-like",
            config={
                **_BASE,
                "architectures": ["Qwen3ForCausalLM"],
                "model_type": "qwen3",
                "dtype": "float16",
                "hidden_size": 256,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "intermediate_size": 256,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0,
                "tie_word_embeddings": True,
                "use_sliding_window": False,
            },
            kinds=("q4_0", "q4_1", "q8_0"),
        ),
        Blueprint(
            name="mistral-like",
            config={
                **_BASE,
                "architectures": ["MistralForCausalLM"],
                "model_type": "mistral",
                "hidden_size": 96,
                "num_attention_heads": 6,
                "num_key_value_heads": 3,
                "head_dim": 24,
                "intermediate_size": 160,
                "rope_theta": 10000.0,
                "sliding_window": 5,
            },
        ),
        Blueprint(
            name="qwen2-wide",
            config={
                **_BASE,
                "architectures": ["Qwen2ForCausalLM"],
                "model_type": "qwen2",
                "hidden_size": 3584,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "intermediate_size": 18944,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0,
                "use_sliding_window": False,
            },
            kinds=("q4_k", "q8_0", "f16", "f32"),
            wide=True,
        ),
    )
}
"""Name -> the kind of model: other families, sizes, heads, windows, rotary rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An arithmetic and the number format of the weights that it is used with.

    Attributes:
        name: what tables call it.
        store: the format in which the runtime keeps its stages.
        rules: operation -> name of the rule for its operands.
        kind: the GGUF format of the weights, or their scheme of ``exam.quantised``; ``""`` for plain ones.
        sequential: whether sums run one term after the other.

    """

    name: str
    store: str = "f32"
    rules: Mapping[Operation, str] = field(default_factory=dict)
    kind: str = ""
    sequential: bool = False

    def operand_rules(self) -> dict[Operation, Rule]:
        """Return the rows of ``operand_rules.py`` that it names."""
        return {
            operation: next(rule for rule in RULES[operation] if rule.name == name)
            for operation, name in self.rules.items()
        }

    @property
    def unit_roundoff(self) -> float:
        """The unit roundoff of its store."""
        return format_named(self.store).unit_roundoff


_GGML_ATTENTION = {Operation.SCORES: "f16 q and k", Operation.MIX: "f16 weights and v"}


def _quantised(name: str, kind: str, rule: str, attention: Mapping[Operation, str]) -> Setting:
    return Setting(name=name, kind=kind, rules={Operation.PROJECTION: rule, **attention})


SETTINGS: Mapping[str, Setting] = {
    row.name: row
    for row in (
        Setting(name="f32"),
        Setting(name="f32, sums in sequence", sequential=True),
        Setting(name="f16", store="f16"),
        Setting(name="bf16", store="bf16"),
        _quantised("q4_0 x q8_0 of 32", "q4_0", "q8_0 blocks of 32", _GGML_ATTENTION),
        _quantised("q4_1 x q8_1 of 32", "q4_1", "q8_1 blocks of 32", _GGML_ATTENTION),
        _quantised("q8_0 x q8_0 of 32", "q8_0", "q8_0 blocks of 32", {}),
        _quantised("q4_0 x q8 of 256", "q4_0", "q8 blocks of 256", {}),
        _quantised("q4_k x q8 of 256", "q4_k", "q8 blocks of 256", {}),
        _quantised("q4_k x q8_k of 256", "q4_k", "q8_k blocks of 256", _GGML_ATTENTION),
        _quantised(
            "q4_0 x q8_0 of 32, q8_0 k cache", "q4_0", "q8_0 blocks of 32", {Operation.SCORES: "q8_0 k cache"}
        ),
    )
}
"""Name -> setting."""

_INT8, _FP8 = "int8 {} cache, a scale per {}", "fp8 e4m3 {} cache, a scale per tensor"


def _cached(name: str, kind: str, per: str = "") -> Setting:
    rules = {Operation.SCORES: kind.format("k", per), Operation.MIX: kind.format("v", per)}
    return Setting(name=name, rules=rules)


OF_CACHES: Mapping[str, Setting] = {
    row.name: row
    for row in (
        _cached("int8 cache, a scale per token and head", _INT8, "token and head"),
        _cached("int8 cache, a scale per head", _INT8, "head"),
        _cached("fp8 cache, a scale per tensor", _FP8),
    )
}
"""Name -> setting of a cache in 8 bits, for runs in passes."""

OF_WEIGHTS: Mapping[str, Setting] = {name: Setting(name=name, kind=name) for name in SCHEMES}
"""Name -> setting of a scheme of ``exam.quantised``."""

EVERY_SETTING: Mapping[str, Setting] = {**SETTINGS, **OF_CACHES, **OF_WEIGHTS}
"""Name -> setting, of every part of the exam."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A model to be run.

    Attributes:
        name: its blueprint.
        seed: draws its weights.
        kind: the GGUF format of its weights, or a scheme of ``exam.quantised``; ``""`` for plain ones.
        rows: how its embedding rows are made, see ``exam.texts``: ``""``, ``same`` or ``near``.

    """

    name: str
    seed: int
    kind: str = ""
    rows: str = ""

    @property
    def file_name(self) -> str:
        """What its checkpoint is called in the exam's folder of models."""
        parts = (self.name, str(self.seed), self.kind.replace(" ", "-"), self.rows)
        return "-".join(part for part in parts if part) + (".gguf" if self.kind and not self.scheme else "")

    @property
    def scheme(self) -> bool:
        """Whether its weights are quantised by a scheme of HuggingFace checkpoints."""
        return self.kind in SCHEMES

    @property
    def plain(self) -> Material:
        """The same model before its weights were quantised."""
        return replace(self, kind="")

    @property
    def wide(self) -> bool:
        """Whether it has a real model's width: gigabytes, of which one is in memory at a time."""
        blueprint = BLUEPRINTS.get(self.name)
        return blueprint is not None and blueprint.wide


def tokens_of(seed: int, length: int, vocab: int) -> tuple[int, ...]:
    """Return ``length`` token ids, chosen by ``seed``."""
    drawn: list[int] = np.random.default_rng(seed).integers(1, vocab, size=length).tolist()
    return tuple(drawn)
