"""Names without paths of this machine: of models, and in texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_falsify.portable import id_of, model_name, portable_path, portable_text, stated_name
from tests.unit.helpers import TINY

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-Coder-7B-Instruct", "a/b", "some-one/a-model_v1.0"])
def test_a_snapshot_in_the_hubs_cache_has_the_id_that_was_fetched_into_it(name: str, tmp_path: Path) -> None:
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name, repo_type="model")
    assert id_of(str(tmp_path / folder / "snapshots" / REVISION)) == name
    assert id_of(f"{folder}/snapshots/{REVISION}/") == name
    assert id_of(name) == name
    assert id_of(f"{name}@{REVISION}") == name


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
        "./Qwen/Qwen2.5-Coder-7B-Instruct",
        "Qwen/Qwen2.5-Coder-7B-Instruct@main",
        "qwen@sha256:0123456789ab",
    ],
)
def test_no_other_path_says_whose_model_it_holds(path: str) -> None:
    assert id_of(path) is None


def test_a_folder_that_exists_is_no_hub_id_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Someone" / "Tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert id_of("Someone/Tiny") is None
    assert name_of("Someone/Tiny") == "./Someone/Tiny"
    assert id_of(name_of("Someone/Tiny")) is None, "nor does its name in a trace pass for one"


DIGEST = "0123456789abcdef" * 4


def name_of(path: str | Path) -> str:
    return model_name(Path(path), lambda: DIGEST)


def unread() -> str:
    raise AssertionError("no file of it is read to name it")


def test_a_snapshot_of_the_hub_goes_by_its_id_and_revision(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Someone--Tiny" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (tmp_path / "link").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "link"):
        assert model_name(path, unread) == f"Someone/Tiny@{REVISION}"


def test_the_checkpoint_of_the_package_has_one_name_wherever_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, TINY.parent, TINY.parents[3]):
        monkeypatch.chdir(folder)
        assert model_name(TINY, unread) == "apr_falsify/data/tiny-qwen2"


def test_a_model_in_the_project_goes_by_its_path_from_the_checkouts_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "models" / "tiny" / "x.gguf"
    (tmp_path / "scripts").mkdir()
    model.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "scripts")
    assert name_of(model) == "x.gguf@sha256:0123456789ab", "outside of a project that is this folder alone"
    (tmp_path / ".git").touch()  # a file in a worktree, a folder elsewhere
    for path in (model, "../models/tiny/x.gguf", "../scripts/../models/tiny/x.gguf"):
        assert model_name(Path(path), unread) == "models/tiny/x.gguf"


def test_a_link_in_the_project_is_named_as_the_project_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, project = tmp_path / "disk", tmp_path / "project"
    disk.mkdir()
    project.mkdir()
    (project / "models").symlink_to(disk)
    monkeypatch.chdir(project)
    assert model_name(Path("models/tiny.gguf"), unread) == "./models/tiny.gguf"
    assert name_of(disk / "tiny.gguf") == "tiny.gguf@sha256:0123456789ab"


def test_a_current_directory_that_holds_everything_or_is_the_model_is_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (Path("/"), tmp_path):
        monkeypatch.chdir(folder)
        assert name_of(tmp_path) == f"{tmp_path.name}@sha256:0123456789ab"
    assert name_of(".") == f"{tmp_path.name}@sha256:0123456789ab"


@pytest.mark.parametrize(
    ("stated", "sha256", "name"),
    [
        ("/data/models/tiny-qwen2", DIGEST, "tiny-qwen2@sha256:0123456789ab"),
        ("/data/models/tiny-qwen2/", None, "tiny-qwen2"),
        (r"C:\models\tiny.gguf", DIGEST, "tiny.gguf@sha256:0123456789ab"),
        (f"/hub/models--Someone--Tiny/snapshots/{REVISION}", DIGEST, f"Someone/Tiny@{REVISION}"),
        ("Someone/Tiny", DIGEST, "Someone/Tiny"),
        ("src/apr_falsify/data/tiny-qwen2", DIGEST, "src/apr_falsify/data/tiny-qwen2"),
        ("tiny-qwen2@sha256:0123456789ab", DIGEST, "tiny-qwen2@sha256:0123456789ab"),
        ("", None, ""),
    ],
)
def test_a_path_that_a_trace_states_is_cut_and_a_name_stays(
    stated: str, sha256: str | None, name: str
) -> None:
    assert stated_name(stated, sha256) == name


def test_absolute_paths_in_a_text_are_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, home = tmp_path / "project", tmp_path / "some body"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("HOME", str(home))
    for text, short in {
        f"{project}/tests/x.py: broken": "./tests/x.py: broken",
        f"in {project}: broken": "in .: broken",
        f"'{home}/models/x.apr'": "'~/models/x.apr'",
        f"llama-cpp:{tmp_path}/b/x.gguf: no, ({tmp_path}/c/)": "llama-cpp:.../x.gguf: no, (.../c)",
        f"--save-tensor-dir={tmp_path}/stages --payload {tmp_path}/x.apr": (
            "--save-tensor-dir=.../stages --payload .../x.apr"
        ),
    }.items():
        assert portable_text(text) == short


@pytest.mark.parametrize(
    "text",
    [
        "see https://example.org/tmp/x and q/k/v, 1/2, and/or",
        "../tmp/x/y, ./tmp/x and ~/tmp/x",
        "/model/layers.0/mlp/Mul_output_0 is an array of a file",
        "a / b, //, /",
        "",
    ],
)
def test_what_is_no_absolute_path_stays(text: str) -> None:
    assert portable_text(text) == text


def test_a_path_is_told_from_a_folder_on_and_by_its_name_elsewhere(tmp_path: Path) -> None:
    assert portable_path(f"{tmp_path}/a/b.apr", tmp_path) == "a/b.apr"
    assert portable_path("/elsewhere/b.apr", tmp_path) == ".../b.apr"
    for path in ("../b.apr", "b.apr", "Someone/Tiny", ""):
        assert portable_path(path, tmp_path) == path
