"""Correct runs of the real ``apr`` whose activations lie on edges between 8-bit integers, in every layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apr_falsify.model.stages import Key
from tests.acceptance.programs import APR_TOKENS, Outcome, run
from tests.apr_edges import (
    LAYERS,
    RECORDED,
    disagreeing,
    found_vectors,
    recorded_vectors,
    stage,
    with_vectors,
)
from tests.apr_probe import HIDDEN, PRODUCTS, edge_embeddings, readouts, write_probe
from tests.edge_values import KINDS, SIZE, rows_of
from tests.unit.apr_files import needs_apr

PLACED = ("attn_norm", "attention", "ffn_norm")


def edges(folder: Path) -> dict[tuple[int, str], int]:
    """Return how many values of each stage another order of operations would round otherwise."""
    values = {Key(layer, name): stage(folder, layer, name) for layer in range(LAYERS) for name in PLACED}
    scales = {key: np.abs(x).max(axis=-1, keepdims=True) / np.float32(127) for key, x in values.items()}
    return {key: int(disagreeing(x, scales[key]).sum()) for key, x in values.items()}


def bisected(oracle: Path, subject: str) -> Outcome:
    where = ("--tokens", APR_TOKENS, "--layers", f"0..{LAYERS}")
    return run("bisect", "--oracle", oracle, "--subject", subject, *where, "--format", "json")


def assert_consistent(outcome: Outcome) -> None:
    found = outcome.json
    assert (found["kind"], found["sources"], found["complete"]) == ("consistent", [], True)
    products = [
        row for row in found["stages"] if row["stage"] in ("qkv_matmul", "attn_out", "ffn_gate", "ffn_up")
    ]
    assert len(products) == 4 * LAYERS
    assert {row["arithmetic"] for row in products} == {"q4_k x q8 blocks of 256"}
    assert max(row["residual"] for row in products) < 1e-6


def test_a_recorded_run_with_edges_in_every_layer_is_consistent(tmp_path: Path) -> None:
    assert min(edges(RECORDED / "trace").values()) >= 20
    model = with_vectors(tmp_path / "edges.gguf", recorded_vectors())
    assert_consistent(bisected(model, f"recorded:{RECORDED / 'trace'}"))


@needs_apr
def test_a_live_run_with_edges_in_every_layer_is_consistent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are placed anew: on another processor sums before them round otherwise."""
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path / "cache"))
    model = with_vectors(tmp_path / "edges.gguf", found_vectors(tmp_path))
    outcome = run(
        "bisect",
        "--oracle",
        model,
        "--subject",
        f"apr:{model}",
        "--layers",
        f"0..{LAYERS}",
        "--out",
        tmp_path / "out",
        "--format",
        "json",
    )
    assert min(edges(tmp_path / "out" / "subject").values()) >= 20
    assert_consistent(outcome)


@needs_apr
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_apr_multiplies_is_read_off_its_output_and_is_ours_to_the_bit(kind: str, tmp_path: Path) -> None:
    embeddings = edge_embeddings(1)
    path = write_probe(tmp_path / "probe.gguf", embeddings, rows_of(kind, 4, 1).reshape(1, HIDDEN))
    found = {readout.stage: readout for readout in readouts(path)}
    assert list(found) == list(PRODUCTS)
    np.testing.assert_array_equal(found["attn_norm"].inputs, embeddings[:, SIZE:])
    assert {name: readout.differing for name, readout in found.items()} == dict.fromkeys(PRODUCTS, 0)
