"""What goes wrong with quantised weights: they are understood otherwise, or were kept in a coarser type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from apr_falsify.compare.misreadings import Misreading, misreadings
from apr_falsify.compare.variations.case import Case, Guess, MadeTensor, reweighed
from apr_falsify.compare.variations.projected import likely, tensors_of
from apr_falsify.formats.tensors import FloatArray, Tensor
from apr_falsify.numerics.arithmetic import round_bf16, round_f16


def _through_gguf(kind: str) -> Callable[[FloatArray], FloatArray]:
    def kept(values: FloatArray) -> FloatArray:
        import gguf

        quantised = gguf.quants.quantize(values.astype(np.float32), gguf.GGMLQuantizationType[kind])
        result: FloatArray = gguf.quants.dequantize(quantised, gguf.GGMLQuantizationType[kind])
        return result

    return kept


_TYPES: Mapping[str, tuple[int, Callable[[FloatArray], FloatArray]]] = {
    "f16": (1, round_f16),
    "bf16": (1, round_bf16),
    "q8_0": (32, _through_gguf("Q8_0")),
    "q4_0": (32, _through_gguf("Q4_0")),
    "q4_1": (32, _through_gguf("Q4_1")),
    "q5_0": (32, _through_gguf("Q5_0")),
    "q5_1": (32, _through_gguf("Q5_1")),
}
"""Weight type -> its block, and what it keeps of a row; K-quants depend on the quantiser's search."""


def quantised_weights(case: Case) -> Iterator[Guess]:
    """Yield the stage with its weights kept in each coarser type."""
    own = tensors_of(case)
    for kind, (block, keep) in _TYPES.items():
        if any(tensor.shape[-1] % block or tensor.type == kind for tensor in own.values()):
            continue
        changed = {role: _kept(tensor, kind, keep) for role, tensor in own.items()}
        if not likely(case, changed):
            continue
        types = " and ".join(dict.fromkeys(tensor.type for tensor in own.values()))
        instead = f"the model's weights are {types}"
        yield case.evaluated(f"weights stored as {kind}", weights=reweighed(case, changed), instead=instead)


def misread_weights(case: Case) -> Iterator[Guess]:
    """Yield the stage with its quantised weights understood otherwise, all of them or one role's."""
    own = tensors_of(case)
    found: dict[tuple[str, str], dict[str, Misreading]] = {}
    for role, tensor in own.items():
        for one in misreadings(tensor):
            found.setdefault((one.name, one.says), {})[role] = one
    for (name, says), by_role in found.items():
        instead = next(iter(by_role.values())).instead
        for roles in (tuple(by_role), *((role,) for role in by_role if len(by_role) > 1)):
            changed = {role: by_role[role].tensor for role in roles}
            if not likely(case, changed):
                continue
            told = says if len(roles) == len(own) else f"in {' and '.join(roles)} {says}"
            weights = reweighed(case, changed)
            yield case.evaluated(told, weights=weights, name=name, instead=instead)


def _kept(tensor: Tensor, kind: str, keep: Callable[[FloatArray], FloatArray]) -> MadeTensor:
    return MadeTensor(
        name=tensor.name,
        type=kind,
        shape=tensor.shape,
        decode=lambda start, stop: keep(tensor.rows(start, stop)),
    )
