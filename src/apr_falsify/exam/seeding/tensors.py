"""Wrong tensors and configs: faults that can be written into a checkpoint, and so run in any runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.weights import ROTATED_ROLES, Weights, half_split
from apr_falsify.model.families import family_of
from apr_falsify.model.shape import Geometry
from apr_falsify.numerics.quantise import q4_0
from apr_falsify.operators.heads import head_size

F32 = npt.NDArray[np.float32]
Place = tuple[str, int | None]
"""A weight: its role and its layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A sound checkpoint, and where in it something goes wrong.

    Attributes:
        weights: the sound weights.
        layer: the layer to spoil, ``None`` for what the whole model has once.
        seed: chooses rows, channels and heads.

    """

    weights: Weights
    layer: int | None
    seed: int

    @property
    def geometry(self) -> Geometry:
        """The model's geometry."""
        return self.weights.geometry

    def get(self, role: str, layer: int | None = None) -> F32:
        """Return a copy of a sound tensor; of the bench's layer where none is named."""
        return _sound(self.weights, role, self.layer if layer is None else layer)

    def pick(self, count: int) -> int:
        """Return one of ``count``, chosen by the seed."""
        return int(np.random.default_rng(self.seed).integers(count))

    @property
    def neighbour(self) -> int:
        """The number of a neighbouring layer."""
        assert self.layer is not None
        return self.layer + 1 if self.layer + 1 < self.geometry.layers else self.layer - 1


Edit = Callable[[Bench], Mapping[Place, F32]]
"""Returns the tensors that replace sound ones."""

Config = dict[str, Any]
ConfigEdit = Callable[[Config], Config]
"""Returns a wrong config.json, given the right one."""


def as_stored(weights: Weights, changed: Mapping[Place, F32]) -> dict[str, F32]:
    """Return the tensors of a HuggingFace checkpoint that hold ``changed``: name -> values.

    What lies in one tensor with others is given with those, a norm's weight less its family's offset, and
    what a family stores [in, out] so. Weights of another file have the names of the family's checkpoint.
    """
    row = family_of(weights.geometry)
    names = weights.names if weights.of_checkpoint else row.weights
    found: dict[str, F32] = {}
    for role, layer in changed:
        group = next((each for each in row.fused if role in each), (role,))
        if weights.of_checkpoint and role in row.listed_rows:
            group = tuple(each for each in row.listed_rows if names.get(each) == names[role])
        parts = [changed.get((each, layer), _sound(weights, each, layer)) for each in group]
        if weights.interleaved:  # as the file holds them
            parts = [
                half_split(weights.geometry, each).as_stored(part) if each in ROTATED_ROLES else part
                for each, part in zip(group, parts, strict=True)
            ]
        if group[0] in row.listed_rows and weights.of_checkpoint:
            values = _listed([row.listed_rows[each](weights.geometry) for each in group], parts)
        else:
            values = _together(parts, weights.geometry) if len(parts) > 1 else parts[0]
        if role.endswith("norm"):
            values = values - np.float32(row.norm_offset)
        name = names[role].format(n=layer)
        found[name] = np.ascontiguousarray(values.T if role in row.transposed else values)
    return found


def _listed(rows: Sequence[tuple[int, ...]], parts: list[F32]) -> F32:
    """Return a tensor of which each part has the rows that are listed for it."""
    whole = np.empty((sum(map(len, rows)), *parts[0].shape[1:]), np.float32)
    for own, part in zip(rows, parts, strict=True):
        whole[list(own)] = part
    return whole


def _together(parts: list[F32], geometry: Geometry) -> F32:
    """Return what lies in one tensor: one below the other, or head by head."""
    if not family_of(geometry).fused_by_head:
        return np.concatenate(parts)
    heads = [part.reshape(-1, geometry.head_dim, *part.shape[1:]) for part in parts]
    return np.stack(heads, axis=1).reshape(-1, *parts[0].shape[1:])


def _sound(weights: Weights, role: str, layer: int | None) -> F32:
    tensor = weights.tensor(role, layer)
    return np.array(tensor.rows(0, tensor.shape[0]), dtype=np.float32)


def times(*roles: str, factor: float) -> Edit:
    """Multiply whole tensors: 0 is a tensor that was never loaded."""
    return lambda bench: {(role, bench.layer): bench.get(role) * np.float32(factor) for role in roles}


def plus(*roles: str, offset: float) -> Edit:
    """Add ``offset`` to every value."""
    return lambda bench: {(role, bench.layer): bench.get(role) + np.float32(offset) for role in roles}


def row_times(role: str, factor: float) -> Edit:
    """Multiply one row: one output channel."""

    def edit(bench: Bench) -> Mapping[Place, F32]:
        values = bench.get(role)
        values[bench.pick(len(values))] *= np.float32(factor)
        return {(role, bench.layer): values}

    return edit


def column_times(role: str, factor: float) -> Edit:
    """Multiply one column: what one input channel contributes."""

    def edit(bench: Bench) -> Mapping[Place, F32]:
        values = bench.get(role)
        values[:, bench.pick(values.shape[1])] *= np.float32(factor)
        return {(role, bench.layer): values}

    return edit


def block_times(role: str, factor: float) -> Edit:
    """Multiply one block of 32 weights: a quantisation scale that was read wrongly."""

    def edit(bench: Bench) -> Mapping[Place, F32]:
        values = bench.get(role)
        row, start = bench.pick(len(values)), 32 * bench.pick(values.shape[1] // 32)
        values[row, start : start + 32] *= np.float32(factor)
        return {(role, bench.layer): values}

    return edit


def head_times(role: str, factor: float) -> Edit:
    """Multiply the rows of one head."""

    def edit(bench: Bench) -> Mapping[Place, F32]:
        values = bench.get(role)
        heads = values.reshape(-1, bench.geometry.head_dim, *values.shape[1:])
        heads[bench.pick(len(heads))] *= np.float32(factor)
        return {(role, bench.layer): values}

    return edit


def transposed(role: str) -> Edit:
    """Transpose a square weight."""
    return lambda bench: {(role, bench.layer): np.ascontiguousarray(bench.get(role).T)}


def from_neighbour(*roles: str) -> Edit:
    """Take the tensors of a neighbouring layer."""
    return lambda bench: {(role, bench.layer): bench.get(role, bench.neighbour) for role in roles}


def exchanged(first: str, second: str) -> Edit:
    """Put each tensor in the other's place."""
    return lambda bench: {(first, bench.layer): bench.get(second), (second, bench.layer): bench.get(first)}


def exchanged_into(source: str, target: str) -> Edit:
    """Put the tensor ``source`` in the place of ``target`` too."""

    def edit(bench: Bench) -> Mapping[Place, F32]:
        layer = None if source == "embed" else bench.layer
        return {(target, bench.layer): bench.get(source, layer)}

    return edit


def filled(role: str, value: float) -> Edit:
    """Fill a tensor with one value."""
    return lambda bench: {(role, bench.layer): np.full_like(bench.get(role), value)}


def heads_reversed(*roles: str) -> Edit:
    """Reverse the order of heads (of rows; of columns for the output projection)."""

    def reverse(role: str, values: F32, head_dim: int) -> F32:
        turned = values.T if role == "o" else values
        heads = turned.reshape(-1, head_dim, *turned.shape[1:])[::-1].reshape(turned.shape)
        return np.ascontiguousarray(heads.T if role == "o" else heads)

    return lambda bench: {
        (role, bench.layer): reverse(
            role, bench.get(role), head_size("v" if role == "o" else role, bench.geometry)
        )
        for role in roles
    }


def permuted_pairs(*roles: str) -> Edit:
    """Store rotary pairs interleaved, as a conversion to GGUF does, where halves are read."""

    def permute(values: F32, head_dim: int) -> F32:
        halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)

    return lambda bench: {
        (role, bench.layer): permute(bench.get(role), bench.geometry.head_dim) for role in roles
    }


def noisy(role: str, share: float) -> Edit:
    """Add noise of ``share`` of the tensor's spread: a lossy conversion that nobody declared."""

    def edit(bench: Bench) -> Mapping[Place, F32]:
        values = bench.get(role)
        noise = np.random.default_rng(bench.seed).normal(0, share * float(np.std(values)), values.shape)
        return {(role, bench.layer): (values + noise).astype(np.float32)}

    return edit


def four_bit(role: str) -> Edit:
    """Keep the tensor in q4_0 where it should be whole."""
    return lambda bench: {(role, bench.layer): q4_0(bench.get(role)).astype(np.float32)}


def rows_shifted(role: str) -> Edit:
    """Shift all rows by one: a vocabulary with one token too many at its start."""
    return lambda bench: {(role, bench.layer): np.roll(bench.get(role), 1, axis=0)}


def epsilon(value: float) -> ConfigEdit:
    """Use another epsilon in every norm."""
    return lambda config: {**config, "rms_norm_eps": value}


def rope_base(factor: float) -> ConfigEdit:
    """Use another rotary base, under every key that names it."""

    def edit(config: Config) -> Config:
        changed = dict(config)
        if "rope_theta" in config:
            changed["rope_theta"] = config["rope_theta"] * factor
        if "rope_parameters" in config:
            parameters = dict(config["rope_parameters"])
            parameters["rope_theta"] = parameters["rope_theta"] * factor
            changed["rope_parameters"] = parameters
        return changed

    return edit


def without_rope_scaling(config: Config) -> Config:
    """Ignore the model's rope scaling."""
    return {key: value for key, value in config.items() if key != "rope_scaling"}


def window_by(offset: int) -> ConfigEdit:
    """Use a sliding window that is ``offset`` longer."""
    return lambda config: {**config, "sliding_window": config["sliding_window"] + offset}


def without_window(config: Config) -> Config:
    """Ignore the sliding window."""
    return {**config, "sliding_window": None}


def activation(name: str) -> ConfigEdit:
    """Use another activation."""
    return lambda config: {**config, "hidden_act": name}
