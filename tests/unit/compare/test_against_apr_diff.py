"""Our figures against those of the real ``apr diff --values --json``, live and as recorded."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apr_falsify.compare.axes import Axes
from apr_falsify.compare.metrics import Metrics, compare_arrays
from apr_falsify.formats.aprt import read_aprt, write_aprt
from tests.support import DATA

APR = shutil.which("apr")
TINY = DATA / "apr-tiny-qwen2"
RECORDED = json.loads((DATA / "apr-output" / "diff-values.json").read_text(encoding="utf-8"))
PAIRS = [
    path.relative_to(TINY / "base").as_posix()
    for path in sorted((TINY / "base").rglob("*.bin"))
    if path.stem
    in ("attn_norm", "attn_scores", "qkv_bias", "ffn_out", "post_ffn_residual", "final_norm", "lm_head")
]

needs_apr = [pytest.mark.real_apr, pytest.mark.skipif(APR is None, reason="no apr binary on PATH")]


def apr_diff(one: Path, other: Path) -> dict[str, Any]:
    assert APR is not None
    command = [APR, "diff", "--values", str(one), str(other), "--json", "--limit", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def flat(one: Path, other: Path) -> Metrics:
    return compare_arrays(read_aprt(one).values, read_aprt(other).values, Axes(names=("value",)))


def assert_same(ours: Metrics, theirs: dict[str, Any]) -> None:
    assert ours.cosine == pytest.approx(theirs["cosine_sim"], abs=1e-6)
    assert ours.max_abs == pytest.approx(theirs["max_abs_diff"], rel=1e-6)
    assert ours.at == (theirs["max_abs_diff_index"],)
    assert ours.difference_norm / math.sqrt(ours.elements) == pytest.approx(theirs["rms_diff"], rel=1e-6)
    assert ours.elements == theirs["dim_product"]


class TestLive:
    pytestmark = needs_apr

    @pytest.mark.falsify_save_tensor_006
    @pytest.mark.falsify_attn_sub_003
    @pytest.mark.parametrize("name", PAIRS)
    def test_apr_reads_the_same_figures_from_the_same_files(self, name: str) -> None:
        pair = TINY / "base" / name, TINY / "norm-scaled" / name
        assert_same(flat(*pair), apr_diff(*pair))

    def test_apr_reads_files_that_we_wrote(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)
        paths = tmp_path / "one.bin", tmp_path / "other.bin"
        for path in paths:
            with path.open("wb") as file:
                write_aprt(file, rng.standard_normal((7, 33), dtype=np.float32), 4)
        theirs = apr_diff(*paths)
        assert theirs["layer"] == 4
        assert_same(flat(*paths), theirs)

    def test_its_output_has_the_shape_that_was_recorded(self) -> None:
        name = "layer-0/attn_norm.bin"
        assert apr_diff(TINY / "base" / name, TINY / "norm-scaled" / name).keys() == RECORDED.keys()


@pytest.mark.falsify_save_tensor_006
def test_the_recorded_differences_are_consistent_with_our_base_file() -> None:
    # The other file of that run is not vendored; its ten worst values are, and they fix these figures.
    base = read_aprt(TINY / "base" / "layer-0" / "attn_scores.bin").values
    assert base.size == RECORDED["dim_product"]
    other = base.copy()
    for row in RECORDED["top_diffs"]:
        assert base[row["index"]] == np.float32(row["a"])
        other[row["index"]] = row["b"]
    found = compare_arrays(base, other, Axes(names=("value",)))
    assert found.max_abs == pytest.approx(RECORDED["max_abs_diff"], rel=1e-6)
    assert found.at == (RECORDED["max_abs_diff_index"],)
    rms = found.difference_norm / math.sqrt(found.elements)
    assert rms < RECORDED["rms_diff"], "ten of its differences cannot exceed all of them"
    listed = math.fsum(row["abs_diff"] ** 2 for row in RECORDED["top_diffs"])
    assert found.difference_norm == pytest.approx(math.sqrt(listed), rel=1e-6)
