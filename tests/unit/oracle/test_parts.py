"""What passes show of stages, kept in a file until all have run."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from apr_falsify.errors import OutputError
from apr_falsify.model.stages import Key
from apr_falsify.oracle import parts as room
from apr_falsify.oracle.parts import Parts


@pytest.mark.parametrize("limit", [1 << 20, 64])
def test_each_part_is_read_as_it_was_shown(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, and in a file beyond the limit."""
    monkeypatch.setattr(room, "_IN_MEMORY", limit)
    rng = np.random.default_rng(0)
    shown = {
        Key(0, "attn_scores"): [rng.normal(size=(2, size, 9)) for size in (5, 1, 3)],
        Key(None, "lm_head"): [rng.normal(size=7).astype(np.float32)],
    }
    with Parts() as parts:
        for at in range(3):
            for key, each in shown.items():
                if at < len(each):
                    assert parts.count(key) == at
                    parts.add(key, each[at])
        assert parts.shown == tuple(shown)
        for key, each in shown.items():
            for ours, theirs in zip(parts.of(key), each, strict=True):
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs)


def test_a_file_that_may_not_grow_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own limit on a file's size stands for a full disk."""
    monkeypatch.setattr(room, "_IN_MEMORY", 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Parts() as parts:
        parts.add(Key(0, "embedding"), np.zeros(100))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(OutputError, match="cannot be kept") as refusal:
                parts.add(Key(0, "embedding"), np.zeros(1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "TMPDIR" in str(refusal.value)
