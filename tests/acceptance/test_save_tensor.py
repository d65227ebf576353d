"""What the real ``apr trace --save-tensor`` writes, run here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import real_folder

APR = shutil.which("apr")


@pytest.mark.real_apr
@pytest.mark.skipif(APR is None, reason="no apr binary on PATH")
@pytest.mark.skipif(real_folder() is None, reason="APR_FALSIFY_REAL names no folder")
def test_two_runs_of_the_real_apr_write_the_same_bytes(tmp_path: Path) -> None:
    folder = real_folder()
    assert folder is not None
    assert APR is not None
    model = folder / "apr-tiny-qwen2" / "base.apr"
    runs = []
    for name in ("first", "second"):
        command = [APR, "trace", "--payload", str(model), "--save-tensor", "all", "--save-tensor-dir", name]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
        written = sorted((tmp_path / name).rglob("*.bin"))
        runs.append({path.relative_to(tmp_path / name): path.read_bytes() for path in written})
    assert len(runs[0]) > 10
    assert runs[0] == runs[1]
