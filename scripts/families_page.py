"""Write docs/families.md: the table of families, from the table itself and from small graphs of each.

``python scripts/families_page.py`` writes the page; ``--check`` says whether it is that already. What a
family's layers are made of is read from its graph, built from the smallest config that transformers makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers

from apr_falsify.model.families import FAMILIES, graph_of
from apr_falsify.model.family import Family
from apr_falsify.model.geometry import geometry_of_config
from apr_falsify.model.mixers import GatedDelta, ShortConv, StateSpace
from apr_falsify.model.shape import Geometry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"

_HEAD = """# Families

Made by `python scripts/families_page.py` from the table in `src/apr_falsify/model/families/`; a test keeps
it so. Every family of this page is opened from a HuggingFace directory, run by the oracle and by the embedded
runtime, replayed and explained, and its tests compare every stage with transformers {version}. *GGUF* names
the architectures that are read from such files; *.apr* the families whose constants such a file states. What
a layer is made of is that of the config with transformers' own defaults.

A family of your own is one file: [adding-a-family.md](adding-a-family.md). Bugs that were reported of ports
of these models, and what is said of each, are in [reported-bugs.md](reported-bugs.md).

| family | `model_type` | GGUF | .apr | norms | q and k | feed-forward | file |
|---|---|---|---|---|---|---|---|
"""

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 8,
    "vocab_size": 64,
}


def page() -> str:
    """Return the page."""
    transformers.logging.set_verbosity_error()  # token ids beyond the small vocabulary do not matter here
    rows = (_row(family) for family in sorted(FAMILIES, key=lambda each: each.title.lower()))
    return _HEAD.format(version=".".join(transformers.__version__.split(".")[:2])) + "\n".join(rows) + "\n"


def _row(family: Family) -> str:
    geometry = _geometry(family)
    file = sys.modules[_defined_in(family)].__name__.rpartition(".")[2]
    cells = (
        family.title,
        " ".join(f"`{name}`" for name in family.model_types),
        ", ".join(family.gguf_architectures) or "-",
        "yes" if family.in_apr else "-",
        _norms(geometry),
        _queries(geometry),
        _feed_forward(geometry),
        f"`{file}.py`",
    )
    return f"| {' | '.join(cells)} |"


def _defined_in(family: Family) -> str:
    """Return the module of ``families/`` that defines a family."""
    return next(
        name
        for name, module in sys.modules.items()
        if name.startswith("apr_falsify.model.families.") and family in vars(module).values()
    )


def _geometry(family: Family) -> Geometry:
    config = transformers.CONFIG_MAPPING[family.model_types[0]]
    known = set(config().to_dict()) | set(getattr(config, "attribute_map", {}))
    small = {key: value for key, value in _SMALL.items() if key in known}
    if "kv_lora_rank" in known:  # every head has k and v of its own, and says by parts how wide it is
        small = {**small, "num_key_value_heads": small["num_attention_heads"]}
        small.pop("head_dim", None)
    kinds = ["linear_attention", "full_attention"]  # a layer of each kind
    if "hybrid_override_pattern" in dir(config):
        small["layers_block_type"] = [*kinds, "mlp"]
    elif "mamba_n_heads" in known:
        small |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    return geometry_of_config(config(**small).to_dict())


def _operators(geometry: Geometry, stages: Iterable[str]) -> list[str]:
    layers = graph_of(geometry).layers
    found = (layer[stage].operator for layer in layers for stage in stages if stage in layer)
    return list(dict.fromkeys(found))


def _norms(geometry: Geometry) -> str:
    kinds = _operators(geometry, ("attn_norm", "ffn_norm", "attn_out", "ffn_out"))
    kind = "LayerNorm" if "layer_norm" in kinds else "RMSNorm"
    layer = graph_of(geometry).layers[0]
    before, after = "attn_norm" in layer, "attn_proj" in layer
    where = {(True, True): "before and after", (True, False): "before", (False, True): "after"}
    return f"{kind} {where[before, after]}"


def _queries(geometry: Geometry) -> str:
    attends = [n for n in range(geometry.layers) if geometry.attends_at(n)]
    layer = graph_of(geometry).layers[attends[0] if attends else 0]
    said = ["of latents"] if geometry.kv_latent else []
    if "q_norm" in layer:
        said.append("normed by head" if layer["q_norm"]["over"] == "head" else "normed whole")
    kinds = {geometry.rope_at(n).kind for n in range(geometry.layers)}
    if kinds == {"none"}:
        said.append("learned positions" if geometry.positions else "no RoPE")
    else:
        share = next(
            geometry.rope_at(n) for n in range(geometry.layers) if geometry.rope_at(n).kind != "none"
        )
        rotated = "RoPE" if share.share == 1 else f"RoPE on {share.share:.3g} of a head"
        said.append(rotated + (", not in every layer" if "none" in kinds else ""))
    if "q_l2_norm" in layer:
        said.append("normed after it")
    if any(geometry.chunks):
        said.append("chunks in some layers")
    if "attn_gated" in layer:
        said.append("gated output")
    if isinstance(geometry.mixer, GatedDelta):
        said.append("a gated delta rule in the other layers")
    if isinstance(geometry.mixer, StateSpace):
        said.append("a state space in the other layers")
    if isinstance(geometry.mixer, ShortConv):
        said.append(
            "short convolutions" + (" in the other layers" if not all(geometry.attends) else ", where said")
        )
    if any(geometry.windows):
        said.append("window" if all(geometry.windows) else "window in some layers")
    return ", ".join(said)


def _feed_forward(geometry: Geometry) -> str:
    layer = graph_of(geometry).layers[next((n for n, fed in enumerate(geometry.feeds) if fed), 0)]
    mixture = any(geometry.is_mixture(n) for n in range(geometry.layers))
    kind = _mixture(geometry) if mixture else "gated" if "ffn_gate" in layer else "plain"
    parallel = "" if "post_attn_residual" in layer else ", beside attention"
    if geometry.feeds:
        parallel = ", in layers of its own"
    return f"{kind}, {geometry.activation}{parallel}"


def _mixture(geometry: Geometry) -> str:
    router = f"{geometry.router_scoring} router{', corrected' if geometry.router_corrected else ''}"
    shared = ", a shared one" if geometry.shared_intermediate else ""
    return f"mixture of experts{shared} ({router})"


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(
            0 if PAGE.read_text(encoding="utf-8") == page() else "docs/families.md is not that of the table"
        )
    PAGE.write_text(page(), encoding="utf-8")
