"""Hub ids, without a network: what is in huggingface_hub's own cache, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.errors import ModelError
from apr_falsify.oracle.hub import resolve
from tests.unit.helpers import TINY, run_script

OFFLINE = """
import os
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_CACHE=sys.argv[2])
from apr_falsify.errors import ModelError
from apr_falsify.oracle.hub import resolve
try:
    print(resolve(sys.argv[1]))
except ModelError as error:
    print(error)
"""


def test_a_path_that_exists_is_itself() -> None:
    assert resolve(str(TINY)) == TINY


@pytest.mark.parametrize("name", ["no-such-model", "./no/such", "/no/such/model", "a/b/c", "../a/b"])
def test_neither_a_path_nor_a_hub_id_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="no such file or directory") as caught:
        resolve(name)
    assert "hub id" in caught.value.expected


def test_an_offline_machine_is_told_how_to_bring_the_model(tmp_path: Path) -> None:
    done = run_script(OFFLINE, "some/model", tmp_path)

    assert done.stderr == ""
    assert done.stdout.startswith("some/model: no such path here, and the hub cannot be reached")
    assert "hf download some/model --local-dir" in done.stdout


def test_a_model_in_the_hubs_cache_is_found_offline(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("a" * 40)

    assert run_script(OFFLINE, "some/model", tmp_path).stdout.strip() == str(snapshot)
