"""``tinyrun HF_DIR --tokens 1,2 --out DIR``: the imagined program of docs/adding-a-runtime.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from apr_falsify.capture import MemorySink, Request
from apr_falsify.stages import STAGES
from apr_falsify.subjects import embedded
from apr_falsify.weights import open_model


def main(model: str, _: str, tokens: str, __: str, out: str) -> None:
    """Write every stage of every layer."""
    opened = open_model(Path(model))
    ids = tuple(int(token) for token in tokens.split(","))
    request = Request(tokens=ids, layers=range(opened.geometry.layers), stages=tuple(STAGES))
    trace = embedded.capture(opened, request, MemorySink())
    for (layer, name), array in trace.stages.items():
        np.save(Path(out) / f"{'model' if layer is None else layer}.{name}.npy", array.data)


if __name__ == "__main__":
    main(*sys.argv[1:])
