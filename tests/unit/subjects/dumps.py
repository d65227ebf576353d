"""A real recording of apr, written again as other programs might write it: arrays with names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from safetensors.numpy import save_file

from apr_falsify.formats.weights import open_model
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.trace import Trace
from tests.support import DATA
from tests.unit.helpers import TINY

TOKENS = (274, 272, 332, 13, 20, 33)
LAYERS = 3
HEADS, KV_HEADS, HEAD_DIM = 8, 2, 32
Arrays = dict[str, npt.NDArray[Any]]


def apr_trace() -> Trace:
    """Return the recording as apr left it."""
    return open_recorded(target(DATA / "apr-tiny-qwen2" / "base", tokens=TOKENS)).trace


def target(path: Path, tokens: tuple[int, ...] | None = None, **options: str) -> Target:
    return Target(path=path, model=open_model(TINY), tokens=tokens, options=options)


def dump_of(trace: Trace) -> Arrays:
    """Return every stage in its canonical shape, per layer as ``L<n>.<stage>``, plain floats."""
    return {
        name if layer is None else f"L{layer}.{name}": np.array(array.data, dtype=np.float32)
        for (layer, name), array in trace.stages.items()
    }


def plain_mapping(trace: Trace) -> dict[str, Any]:
    """Return the mapping file of :func:`dump_of`."""
    stages: dict[str, Any] = {
        name: {"from": name if layer is None else f"L{{layer}}.{name}"} for layer, name in trace.stages
    }
    stages["attn_scores"]["layout"] = ["causal-zeroed"]
    return {
        "schema": "apr-falsify/mapping/v1",
        "runtime": "other",
        "tokens": list(TOKENS),
        "stages": stages,
    }


def write(folder: Path, arrays: Arrays, said: Mapping[str, Any] | str, form: str = "npz") -> Path:
    """Write a recording of ``form`` and its mapping file; return what ``recorded:`` is pointed at."""
    folder.mkdir(parents=True, exist_ok=True)
    text = said if isinstance(said, str) else yaml.safe_dump(dict(said), sort_keys=False)
    (folder / "MAPPING.yaml").write_text(text)
    if form == "npz":
        np.savez(folder / "dump.npz", **arrays)
    elif form == "safetensors":
        save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, folder / "dump.safetensors")
    else:
        for name, values in arrays.items():
            path = folder / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values)
        return folder
    return folder / f"dump.{form}"
