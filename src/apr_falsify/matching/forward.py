"""The forward pass of one run, node by node: its own arrays where they are known, else computed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.weights import Weights
from apr_falsify.matching.forms import StagePlace
from apr_falsify.model.families import graph_of
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import LAYER_INPUT, Key
from apr_falsify.model.wiring import node_of, supplier_of
from apr_falsify.operators.heads import parts
from apr_falsify.operators.operator import Array
from apr_falsify.operators.routing import best, by_expert
from apr_falsify.operators.site import ModelSite, linear
from apr_falsify.operators.table import operator_of

F64 = npt.NDArray[np.float64]

JOINED = ("qkv_matmul", "qkv_bias")
"""Stages whose q, k and v may lie apart."""

OF_LAST = ("moe_router", "moe_router_indices")
"""Stages that are of the last token in ``apr``, and are looked for of every token here."""

_HELD = 384 << 20
"""How many bytes of decoded weights stay in memory; the search asks for those of a layer again and again."""


class DecodedWeights:
    """Weights in f64, the last ones used kept."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._held: OrderedDict[tuple[str, int | None], F64] = OrderedDict()
        self._bytes = 0

    def through(self, x: Array, role: str, layer: int | None) -> Array:
        """Return ``x @ weight.T``."""
        held = self._held.get((role, layer))
        if held is None:
            tensor = self.weights.tensor(role, layer)
            size = 8 * tensor.shape[0] * tensor.shape[1]
            if size > _HELD // 4:
                return linear(x, tensor)
            held = np.asarray(tensor.rows(0, tensor.shape[0]), dtype=np.float64)
            self._held[role, layer] = held
            self._bytes += size
            while self._bytes > _HELD:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        self._held.move_to_end((role, layer))
        return np.asarray(x @ held.T)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSite:
    """Where a node is computed (``operators.site.Site``)."""

    decoded: DecodedWeights
    layer: int | None
    tokens: tuple[int, ...]

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""
        return self.decoded.weights.geometry

    @property
    def passes(self) -> Passes:
        """The tokens at once."""
        return Passes.whole(len(self.tokens))

    def project(self, x: Array, role: str, biased: bool = False) -> Array:
        """Return ``x`` through the projection in ``role``, with its bias where ``biased``."""
        found = self.decoded.through(x, role, self.layer)
        return found + self.vector(f"{role}_bias") if biased else found

    def vector(self, role: str) -> Array:
        """Return the one-dimensional weight in ``role``."""
        return self._plain.vector(role)

    def embed(self) -> Array:
        """Return the rows of the embedding table for the tokens: [S, E]."""
        return self._plain.embed()

    def positions(self) -> Array:
        """Return the learned rows of the tokens' positions: [S, E]."""
        return self._plain.positions()

    @property
    def _plain(self) -> ModelSite:
        return ModelSite(weights=self.decoded.weights, layer=self.layer, tokens=self.tokens)


Values = dict[Key, F64]


class ForwardRun:
    """Computes the places of one run, in forward order."""

    def __init__(self, weights: Weights, tokens: tuple[int, ...]) -> None:
        self.geometry = weights.geometry
        self.tokens = tokens
        self._decoded = DecodedWeights(weights)
        self._graph = graph_of(self.geometry)

    def keys_at(self, layer: int | None) -> list[Key]:
        """Return the stages of ``layer``, or of the whole model, in forward order."""
        return [
            Key(layer, name)
            for name in self._graph.at(layer)
            if name != "moe_ffn_out"  # the last row of ffn_out
        ]

    def places_of(self, key: Key) -> list[StagePlace]:
        """Return the places of a stage."""
        return [StagePlace(key, part) for part in "qkv"] if key.stage in JOINED else [StagePlace(key)]

    def inputs_of(self, key: Key) -> list[Key]:
        """Return the stages that one is computed from."""
        node = node_of(key.stage, self.geometry, key.layer)
        return [supplier_of(source, self.geometry, key.layer) for source in node.inputs.values()]

    def is_of_layer(self, key: Key, derived: Collection[Key]) -> bool:
        """Whether a stage is computed from weights, or from something besides ``derived``."""
        node = node_of(key.stage, self.geometry, key.layer)
        return bool(node.roles) or any(source not in derived for source in self.inputs_of(key))

    def expected(self, key: Key, values: Values) -> F64:
        """Return what a stage's inputs make it, in f64, of every token."""
        if key.stage in OF_LAST:
            return self._of_every_token(key, values)
        node = node_of(key.stage, self.geometry, key.layer)
        inputs: dict[str, Any] = {
            argument: values[supplier_of(source, self.geometry, key.layer)]
            for argument, source in node.inputs.items()
        }
        site = RunSite(decoded=self._decoded, layer=key.layer, tokens=self.tokens)
        with np.errstate(all="ignore"):
            return np.asarray(operator_of(node).values(node, inputs, site), dtype=np.float64)

    def _of_every_token(self, key: Key, values: Values) -> F64:
        """Return each token's experts [S, k], or its weights of them in the order of those that are known."""
        weights = values[Key(key.layer, "router_weights")]
        chosen = best(weights, self.geometry.experts_per_token)
        if key.stage == "moe_router_indices":
            return chosen.astype(np.float64)
        known = values.get(Key(key.layer, "moe_router_indices"))
        order = chosen if known is None else np.clip(known, 0, self.geometry.experts - 1).astype(np.int64)
        return np.take_along_axis(weights, order, axis=-1)

    def part(self, place: StagePlace, whole: F64) -> F64:
        """Return the columns of a place."""
        return whole[:, parts(self.geometry)[place.part]] if place.part else whole

    def put(self, place: StagePlace, own: F64, values: Values) -> None:
        """Let the run go on with its own array at a place; one row is the last token's."""
        key = place.key
        whole = values[key].copy()
        columns = parts(self.geometry)[place.part] if place.part else slice(None)
        if place.axes[0] == "tokens" and len(own) == 1 < len(whole):
            whole[-1:, columns] = own
        elif place.part:
            whole[:, columns] = own
        else:
            whole = own
        values[key] = whole
        if key.stage == "moe_router":
            chosen = np.clip(values[Key(key.layer, "moe_router_indices")], 0, self.geometry.experts - 1)
            weights = by_expert(chosen.astype(np.int64), whole, self.geometry.experts)
            values[Key(key.layer, "router_weights")] = weights.astype(np.float64)

    def readers(self, key: Key, part: str = "") -> list[Key]:
        """Return the stages that are computed from one, or from its q, k or v."""
        found = self._readers(key)
        if not part:
            return found
        nodes = self._graph.at(key.layer)
        return [
            reader
            for reader in found
            if reader.stage in JOINED or nodes[reader.stage].constants.get("part", "v") == part
        ]

    def _readers(self, key: Key) -> list[Key]:
        layer, name = key
        if name in OF_LAST:
            name = "router_weights"
        found = []
        if layer is not None:
            found = [
                Key(layer, other)
                for other, node in self._graph.at(layer).items()
                if name in node.inputs.values() and other not in (*OF_LAST, "moe_ffn_out")
            ]
            first = name == "embedding" and layer == 0
            if first or name == "post_ffn_residual":
                found += self._entered(layer if first else layer + 1)
        else:
            found = [
                Key(None, other) for other, node in self._graph.ends.items() if name in node.inputs.values()
            ]
        return list(dict.fromkeys(found))

    def _entered(self, layer: int) -> list[Key]:
        if layer < self.geometry.layers:
            nodes = self._graph.layers[layer].items()
            return [Key(layer, name) for name, node in nodes if LAYER_INPUT in node.inputs.values()]
        ends = self._graph.ends.items()
        return [Key(None, name) for name, node in ends if "post_ffn_residual" in node.inputs.values()]
