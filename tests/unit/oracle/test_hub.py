"""Hub ids, without a network: what is in huggingface_hub's own cache, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.errors import ModelError
from apr_falsify.oracle.hub import id_of, resolve
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


REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-Coder-7B-Instruct", "a/b", "some-one/a-model_v1.0"])
def test_a_snapshot_in_the_hubs_cache_has_the_id_that_was_fetched_into_it(name: str, tmp_path: Path) -> None:
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name, repo_type="model")
    assert id_of(str(tmp_path / folder / "snapshots" / REVISION)) == name
    assert id_of(f"{folder}/snapshots/{REVISION}/") == name
    assert id_of(name) == name


@pytest.mark.parametrize(
    "path",
    [
        "/data/Qwen2.5-Coder-7B-Instruct",
        "/data/Qwen/Qwen2.5-Coder-7B-Instruct",
        "/hub/models--a--b",
        "/hub/models--a--b/snapshots",
        "/hub/models--a--b/snapshots/main",
        f"/hub/models--a--b/blobs/{REVISION}",
        f"/hub/datasets--a--b/snapshots/{REVISION}",
        f"/hub/models--a/snapshots/{REVISION}",
        f"/hub/models--a--b--c/snapshots/{REVISION}",
        f"/hub/models--a--b/snapshots/{REVISION}/model.gguf",
    ],
)
def test_no_other_path_says_whose_model_it_holds(path: str) -> None:
    assert id_of(path) is None
