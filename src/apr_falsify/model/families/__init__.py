"""The table of model families; each is a file here, alone or with its near relatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from apr_falsify.errors import FamilyError, UnknownFamilyError, nearest
from apr_falsify.model.blocks import WHOLE
from apr_falsify.model.families.arcee import ARCEE
from apr_falsify.model.families.cohere import COHERE, COHERE2
from apr_falsify.model.families.cwm import CWM
from apr_falsify.model.families.deepseek_v2 import DEEPSEEK_V2
from apr_falsify.model.families.deepseek_v3 import DEEPSEEK_V3, GLM4_MOE_LITE
from apr_falsify.model.families.dots1 import DOTS1, SOLAR_OPEN
from apr_falsify.model.families.ernie_moe import ERNIE4_5_MOE
from apr_falsify.model.families.exaone import EXAONE4, EXAONE_MOE
from apr_falsify.model.families.gemma import GEMMA2, GEMMA3
from apr_falsify.model.families.gemma1 import GEMMA
from apr_falsify.model.families.glm import GLM, GLM4
from apr_falsify.model.families.glm_moe import GLM4_MOE
from apr_falsify.model.families.gpt2 import GPT2
from apr_falsify.model.families.gpt_neox import GPT_NEOX
from apr_falsify.model.families.gpt_oss import GPT_OSS
from apr_falsify.model.families.granite import GRANITE
from apr_falsify.model.families.granite_hybrid import GRANITE_HYBRID
from apr_falsify.model.families.granitemoe import GRANITE_MOE, GRANITE_MOE_SHARED
from apr_falsify.model.families.helium import ERNIE4_5, HELIUM
from apr_falsify.model.families.internlm import INTERNLM3, IQUESTCODER
from apr_falsify.model.families.lfm2 import LFM2, LFM2_MOE
from apr_falsify.model.families.llama import LLAMA, MISTRAL
from apr_falsify.model.families.llama4 import LLAMA4
from apr_falsify.model.families.minimax import MINIMAX_M2
from apr_falsify.model.families.ministral import MINISTRAL
from apr_falsify.model.families.mixtral import MIXTRAL, OLMOE
from apr_falsify.model.families.nemotron import JAIS2, NEMOTRON
from apr_falsify.model.families.nemotron_h import NEMOTRON_H
from apr_falsify.model.families.of_users import FamilyFile, families_of_users, file_of, files_but, keep
from apr_falsify.model.families.olmo import OLMO2, OLMO3
from apr_falsify.model.families.phi import PHI3
from apr_falsify.model.families.phi1 import PHI
from apr_falsify.model.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from apr_falsify.model.families.qwen3_next import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from apr_falsify.model.families.qwen_moe import QWEN2_MOE
from apr_falsify.model.families.qwen_vl import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE
from apr_falsify.model.families.seed_oss import SEED_OSS
from apr_falsify.model.families.smollm3 import SMOLLM3
from apr_falsify.model.families.stablelm import STABLELM
from apr_falsify.model.families.starcoder2 import STARCODER2
from apr_falsify.model.families.vaultgemma import VAULTGEMMA
from apr_falsify.model.families.youtu import YOUTU
from apr_falsify.model.family import Family
from apr_falsify.model.graph import Graph, ModulePlace, Tap, graph_of_nodes
from apr_falsify.model.names import ROLE_AXES
from apr_falsify.model.shape import EXPERT_BIASES, EXPERT_ROLES, Geometry

FAMILIES: tuple[Family, ...] = (
    QWEN2,
    LLAMA,
    QWEN3,
    MISTRAL,
    PHI3,
    GPT2,
    GEMMA2,
    GEMMA3,
    QWEN3_MOE,
    OLMO2,
    GRANITE,
    GEMMA,
    MIXTRAL,
    OLMOE,
    SMOLLM3,
    MINISTRAL,
    SEED_OSS,
    OLMO3,
    CWM,
    EXAONE4,
    STARCODER2,
    PHI,
    STABLELM,
    GPT_NEOX,
    COHERE,
    COHERE2,
    GLM,
    GLM4,
    HELIUM,
    ERNIE4_5,
    ARCEE,
    NEMOTRON,
    JAIS2,
    INTERNLM3,
    IQUESTCODER,
    VAULTGEMMA,
    GRANITE_MOE,
    QWEN2_MOE,
    GLM4_MOE,
    DOTS1,
    MINIMAX_M2,
    ERNIE4_5_MOE,
    SOLAR_OPEN,
    EXAONE_MOE,
    GRANITE_MOE_SHARED,
    GPT_OSS,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GLM4_MOE_LITE,
    YOUTU,
    LLAMA4,
    QWEN3_NEXT,
    QWEN3_5,
    QWEN3_5_MOE,
    LFM2,
    LFM2_MOE,
    GRANITE_HYBRID,
    NEMOTRON_H,
    QWEN2_5_VL,
    QWEN3_VL,
    QWEN3_VL_MOE,
)
"""The families that can be captured, run and replayed."""


def known_families() -> tuple[Family, ...]:
    """Return the families of the table, then those that users' files brought."""
    return (*FAMILIES, *families_of_users())


def add_families(path: Path, file: FamilyFile) -> None:
    """Add the families of a user's file, at the resolved ``path``, to those that are known.

    Raises:
        FamilyError: a name, a ``model_type`` or an architecture of one is taken already.

    """
    taken = {said: "of the table" for own in FAMILIES for said in _claims(own)}
    taken |= {said: f"of {o.where}" for o in files_but(path) for own in o.families for said in _claims(own)}
    for own in file.families:
        for claim in _claims(own):
            if claim in taken:
                raise FamilyError(
                    f"its {claim[0]} {claim[1]!r} is taken already by a family {taken[claim]}",
                    where=f"{file.where}: the family {own.name}",
                    remedy="give it a name of its own" if claim[0] == "name" else "leave it out there",
                )
        taken |= dict.fromkeys(_claims(own), "of the same file")
    keep(path, file)
    graph_of.cache_clear()


def _claims(own: Family) -> Iterator[tuple[str, str]]:
    """Give what no other family may have: (what it is, its value)."""
    yield "name", own.name
    yield from (("model_type", value) for value in own.model_types)
    by_key = f" with {own.gguf_key}" if own.gguf_key else ""
    yield from (("GGUF architecture", f"{value}{by_key}") for value in own.gguf_architectures)


def family(name: str) -> Family:
    """Return the family called ``name``, our own name for it.

    Raises:
        UnknownFamilyError: there is none.

    """
    return _lookup(name, {each.name: each for each in known_families()}, "family")


def family_of(geometry: Geometry) -> Family:
    """Return the family of a model."""
    return family(geometry.family)


def place_of(geometry: Geometry) -> str:
    """Return where the family of a model is described, for messages: a user's file, and its name."""
    file = file_of(geometry.family)
    return f"{'' if file is None else f'{file.where}: '}the family {geometry.family}"


def family_of_model_type(model_type: str, where: object = None) -> Family:
    """Return the family whose config.json says ``model_type``.

    Raises:
        UnknownFamilyError: there is none; the known ones are listed.

    """
    known = {value: each for each in known_families() for value in each.model_types}
    return _lookup(model_type, known, "model_type", where)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a config says of its text model, where it is that of a larger one; else all of it."""
    model_type, known = config.get("model_type"), known_families()
    own = next((each for each in known if model_type in each.part_of), None)
    if own is None or any(model_type in each.model_types for each in known):
        return config
    inner = config.get("text_config")
    shared = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    stated = {**shared, **inner} if isinstance(inner, Mapping) else config  # older files are flat
    return {**stated, "model_type": own.model_types[0]}


def family_of_gguf(
    architecture: str, values: Mapping[str, object] | None = None, where: object = None
) -> Family:
    """Return the family whose GGUF says ``architecture``.

    Args:
        architecture: the value of ``general.architecture``.
        values: its keys without the prefix: where two families share an architecture, a key tells them apart.
        where: the file, for messages.

    Raises:
        UnknownFamilyError: there is none; the known ones are listed.

    """
    named = [each for each in known_families() if architecture in each.gguf_architectures]
    with_key = [each for each in named if each.gguf_key and _has_key(each.gguf_key, values or {})]
    with_key.sort(key=lambda each: "=" not in each.gguf_key)
    plain = [each for each in named if not each.gguf_key]
    known = {value: each for each in known_families() for value in each.gguf_architectures}
    if named:
        known[architecture] = (with_key or plain or named)[0]
    return _lookup(architecture, known, "general.architecture", where)


def _has_key(key: str, values: Mapping[str, object]) -> bool:
    name, stated, value = key.partition("=")
    return str(values.get(name)) == value if stated else bool(values.get(name))


def _lookup(name: str, known: Mapping[str, Family], key: str, where: object = None) -> Family:
    try:
        return known[name]
    except KeyError:
        raise UnknownFamilyError(
            f"{key} {name!r} is not a known model family",
            where=where,
            expected="one of " + ", ".join(sorted(known)),
            # No "did you mean": a near name is another family, with other formulas.
            remedy="a model of a listed family, or --family with a file of your own: docs/adding-a-family.md",
        ) from None


@lru_cache(maxsize=64)
def graph_of(geometry: Geometry) -> Graph:
    """Return the graph of a model.

    Raises:
        FamilyError: what its family says of it is no graph.

    """
    own = family_of(geometry)
    file = file_of(own.name)
    try:
        first, *ends = own.ends(geometry)
        graph = graph_of_nodes([first], (own.layer(geometry, n) for n in range(geometry.layers)), ends)
        if file is not None:  # those of the table are checked by tests
            file.check(graph)
            _check_roles(graph, own, geometry)
        return graph
    except FamilyError as error:
        raise error.at(place_of(geometry)) from None


def _check_roles(graph: Graph, own: Family, geometry: Geometry) -> None:
    """Check that every weight of a graph has a name in the checkpoint, and a shape."""
    axes, sizes = {**ROLE_AXES, **own.role_axes}, geometry.dims(tokens=1)
    for nodes in (graph.first, *graph.layers, graph.ends):
        for stage, node in nodes.items():
            _check_tap(stage, node.tap, own)
            for role in node.roles:
                if role not in own.weights:
                    raise FamilyError(
                        f"the node {stage} uses the weight {role!r}, which has no name in weights",
                        expected="one of " + ", ".join(own.weights),
                        remedy=nearest(role, own.weights),
                    )
                if role not in axes:
                    raise FamilyError(
                        f"the node {stage} uses the weight {role!r}, whose shape nothing says",
                        expected=f"role_axes={{{role!r}: (...)}} with words of " + ", ".join(sizes),
                    )
                if unknown := [axis for axis in axes[role] if axis not in sizes]:
                    raise FamilyError(
                        f"the node {stage} uses the weight {role!r}, whose axis {unknown[0]!r} has no size",
                        expected="one of " + ", ".join(sizes),
                        remedy=nearest(unknown[0], sizes),
                    )


def _check_tap(stage: str, tap: Tap | None, own: Family) -> None:
    if tap is None or tap.module in own.weights or tap.module in tuple(ModulePlace) or tap.module[:1] == ".":
        return
    raise FamilyError(
        f"the node {stage} is to be seen at {tap.module!r}, which names no module",
        expected="a role of weights, a ModulePlace, or a path within the layer that begins with a dot",
        remedy=nearest(tap.module, own.weights),
    )


def roles_at(geometry: Geometry, layer: int | None) -> tuple[str, ...]:
    """Return the roles of which ``layer`` (``None``: the whole model) has a tensor, in forward order.

    The tensors of expert e are in the roles ``expert_gate.e``, ``expert_up.e`` and ``expert_down.e``.
    """
    graph = graph_of(geometry)
    nodes = (*graph.first.values(), *graph.ends.values()) if layer is None else graph.layers[layer].values()
    roles = dict.fromkeys(role for node in nodes for role in node.roles)
    return tuple(
        expanded
        for role in roles
        for expanded in (
            [f"{role}.{e}" for e in range(geometry.experts)]
            if role in (*EXPERT_ROLES, *EXPERT_BIASES)
            else [role]
        )
    )


def axes_of_role(role: str, geometry: Geometry) -> tuple[str, ...]:
    """Return the axes of a role's tensor; a norm over all of q or k together is as wide as they are."""
    kind = role.partition(".")[0]
    if kind in ("q_norm", "k_norm"):
        nodes = (layer.get(kind) for layer in graph_of(geometry).layers)
        if any(node is not None and node["over"] == WHOLE for node in nodes):
            return ("q",) if kind == "q_norm" else ("kv",)
    own = family_of(geometry).role_axes
    return own[kind] if kind in own else ROLE_AXES[kind]


def shape_of_role(role: str, geometry: Geometry) -> tuple[int, ...]:
    """Return the shape of a role's tensor as the forward pass uses it."""
    dims = geometry.dims(tokens=1)
    return tuple(dims[axis] for axis in axes_of_role(role, geometry))
