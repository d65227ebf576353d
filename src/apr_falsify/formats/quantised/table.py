"""The table of quantisation schemes, by config.json's ``quant_method``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_falsify.errors import ModelError, nearest
from apr_falsify.formats.quantised import (
    awq,
    bitsandbytes,
    compressed,
    fp8,
    gptq,
    mxfp4,
    nvfp4,
    quanto,
    torchao,
)
from apr_falsify.formats.quantised.checkpoint import Quantised, Reader, ShapeOf, no_shape
from apr_falsify.formats.tensors import Tensor
from apr_falsify.reading import mapping, text

SCHEMES: Mapping[str, Reader] = {
    "gptq": gptq.weights,
    "awq": awq.weights,
    "compressed-tensors": compressed.weights,
    "fp8": fp8.weights,
    "fbgemm_fp8": fp8.weights,
    "mxfp4": mxfp4.weights,
    "modelopt": nvfp4.weights,
    "bitsandbytes": bitsandbytes.weights,
    "quanto": quanto.weights,
    "torchao": torchao.weights,
}
"""``quant_method`` -> what reads its weights."""

CONFIG_KEY = "quantization_config"

_UNSAID: Mapping[str, str] = {".weight._scale": "quanto", "._weight_qdata": "torchao"}
"""How a tensor's name ends -> whose state it is, where config.json says nothing of it."""


def dequantised(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Path],
    where: Path,
    shape_of: ShapeOf = no_shape,
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint with its quantised weights under the names of the plain ones.

    Args:
        config: config.json.
        tensors: name -> tensor, as the files hold them.
        files: name -> the file that holds it.
        where: the directory.
        shape_of: gives the shape that the model's sizes say a weight has, ``None`` where they say none.

    Raises:
        ModelError: a scheme or a setting that is not read here, a part that is missing or does not fit.

    """
    said = config.get(CONFIG_KEY)
    if said is None:
        said = _unsaid(tensors)
    if said is None:
        return dict(tensors)
    path = where / "config.json"
    try:
        said = mapping(said, CONFIG_KEY)
        method = text(said.get("quant_method"), f"{CONFIG_KEY}.quant_method")
    except ValueError as error:
        raise ModelError(str(error), where=path, expected=", ".join(SCHEMES)) from error
    if method not in SCHEMES:
        raise ModelError(
            f"its weights are quantised by {method!r}, which is not read here",
            where=path,
            expected=", ".join(SCHEMES),
            remedy=nearest(method, SCHEMES)
            or "give the model that was quantised, or one that is dequantised",
        )
    try:
        model = Quantised(config=said, tensors=tensors, files=files, where=where, shape_of=shape_of)
        found, parts = SCHEMES[method](model)
    except ValueError as error:
        raise ModelError(f"{CONFIG_KEY} holds an unusable value: {error}", where=path) from error
    used = set(parts)
    kept = {name: tensor for name, tensor in tensors.items() if name not in used}
    return {**kept, **found}


def _unsaid(tensors: Mapping[str, Tensor]) -> Mapping[str, str] | None:
    """Return the scheme that the names of tensors show, ``None`` where they show none."""
    for end, method in _UNSAID.items():
        if any(name.endswith(end) for name in tensors):
            return {"quant_method": method}
    return None
