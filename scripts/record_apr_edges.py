"""Record what the real ``apr`` 0.72.3 makes of activations that lie on edges: tests/data/apr-edges.

    python scripts/record_apr_edges.py

Needs ``apr`` on PATH. ``vectors.npz`` are norms and biases for the tiny Q4_K model with which such values
come up in every layer, ``trace/`` is that run; ``blocks.npz`` holds blocks of all kinds and what became of
them.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # what is recorded is made by the tests' own probes

from tests.apr_edges import RECORDED, found_vectors, traced, with_vectors
from tests.apr_probe import HIDDEN, edge_embeddings, readouts, write_probe
from tests.edge_values import KINDS, SIZE, rows_of
from vendor_real_data import write_digests


def main() -> None:
    """Write the recordings anew, and their digests."""
    if RECORDED.exists():
        shutil.rmtree(RECORDED)
    RECORDED.mkdir()
    # apr prints the paths that it is given; relative ones say nothing of this machine.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        vectors = found_vectors(Path())
        np.savez_compressed(RECORDED / "vectors.npz", **vectors)
        shutil.copytree(traced(with_vectors(Path("edges.gguf"), vectors), Path("trace")), RECORDED / "trace")
        np.savez_compressed(RECORDED / "blocks.npz", **_blocks(Path("probe.gguf")))
    write_digests()


def _blocks(path: Path) -> dict[str, np.ndarray]:
    """Return blocks [n, 256] that apr multiplied, as they were and as they came out."""
    rows = np.concatenate([rows_of(kind, 2) for kind in KINDS])
    found = list(
        readouts(write_probe(path, edge_embeddings(0), rows.reshape(-1, HIDDEN)), ("attn_norm", "attention"))
    )
    normed = next(readout for readout in found if readout.stage == "attn_norm")
    first = [readout for readout in found if readout.stage == "attention"]
    return {
        name: np.concatenate(
            [
                getattr(normed, name).reshape(-1, SIZE),
                *(getattr(each, name)[0].reshape(-1, SIZE) for each in first),
            ]
        )
        for name in ("inputs", "outputs")
    }


if __name__ == "__main__":
    main()
