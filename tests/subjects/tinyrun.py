"""``tinyrun HF_DIR --tokens 1,2 --out DIR``: the imagined program of docs/adding-a-runtime.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import STAGES
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink, Request


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
