"""Lanes: from settings and options, and refused before anything runs where the machine lacks something."""

from __future__ import annotations

import os
import shutil

import pytest

from apr_falsify.commands.lanes import Lane, missing_for
from apr_falsify.evidence.bundle import read_bundle
from apr_falsify.evidence.verify import verify
from apr_falsify.oracle.libraries import cuda_devices
from tests.acceptance.programs import TINY, run
from tests.subjects.fake_apr import fake_apr
from tests.unit.pytest_plugin.conftest import Project

SHOW = """
@pytest.mark.falsify_toy_001
def test_lane(lane):
    print("lane:", lane.name, lane.device, lane.dtype, lane.oracle, lane.subject, lane.prompt, lane.layers)
"""
LANES = """
[tool.apr-falsify.lanes.near]
device = "cpu"
dtype = "f32"
oracle = "model"
subject = "embedded:model"
prompt = "Hi"
layers = "0..2"

[tool.apr-falsify.lanes.far]
device = "cuda"
dtype = "f16"
oracle = "Someone/Model-7B"
subject = "apr:far.apr"
"""


@pytest.fixture
def lanes(project: Project) -> Project:
    (project.root / "model").mkdir()
    return project.write(SHOW, lanes=LANES, table='gpu-lane = "far"')


def lane_of(result: pytest.RunResult) -> str:
    (line,) = [one for one in result.outlines if "py lane: " in one]
    return line.partition("py lane: ")[2]


def refused(result: pytest.RunResult, *said: str) -> None:
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = str(result.stderr)
    for words in said:
        assert words in text, text
    assert "collected" not in str(result.stdout)


def test_without_options_it_is_the_embedded_default(lanes: Project) -> None:
    assert lane_of(lanes.run("-s")) == "embedded cpu None None None None None"


def test_a_lane_is_read_and_its_paths_are_those_of_the_project(lanes: Project) -> None:
    model = lanes.root / "model"
    found = lane_of(lanes.run("-s", "--lane", "near"))
    assert found == f"near cpu f32 {model} embedded:{model} Hi range(0, 2)"


def test_options_take_the_place_of_the_lanes_own(lanes: Project) -> None:
    other = lanes.root / "other"
    other.mkdir()
    found = lane_of(lanes.run("-s", "--lane=near", "--oracle-model=other", "--subject=embedded:other"))
    changed = "near, changed by options"
    assert found == f"{changed} cpu f32 {other} embedded:{other} Hi range(0, 2)", "it is another set-up"


def test_options_that_say_what_the_lane_says_leave_it_its_name(lanes: Project) -> None:
    found = lane_of(lanes.run("-s", "--lane=near", "--oracle-model=model", "--subject=embedded:model"))
    assert found.startswith("near cpu ")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("apr:elsewhere/tiny.apr", "filed cpu "),
        ("apr:elsewhere/other.apr", "filed, changed by options cpu "),
    ],
)
def test_the_lanes_own_file_in_another_place_leaves_it_its_name(
    project: Project, given: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apr(project.root / "bin" / "apr")  # a lane of apr asks for one, and nothing runs it here
    monkeypatch.setenv("PATH", f"{project.root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    elsewhere = project.root / "elsewhere"
    elsewhere.mkdir()
    for file in ("tiny.apr", "other.apr"):
        (elsewhere / file).touch()
    lane = f'[tool.apr-falsify.lanes.filed]\noracle = "{TINY}"\nsubject = "apr:models/tiny.apr"\n'
    project.write(SHOW, lanes=lane)
    assert lane_of(project.run("-s", "--lane=filed", f"--subject={given}")).startswith(name)


def test_models_without_a_lane_make_one_that_has_no_name(lanes: Project) -> None:
    found = lane_of(lanes.run("-s", "--subject=embedded:model", "--oracle-model=model"))
    assert found.startswith("unnamed cpu ")


@pytest.mark.parametrize(
    ("lanes_text", "said"),
    [
        ('[tool.apr-falsify.lanes.x]\ndevise = "cuda"\n', "did you mean 'device'"),
        ('[tool.apr-falsify.lanes.x]\ndevice = "gpu"\n', "cpu or cuda"),
        ('[tool.apr-falsify.lanes.x]\ndtype = "f64"\n', "f16 or bf16 or f32"),
        ('[tool.apr-falsify.lanes.x]\nlayers = "0-1"\n', "A..B"),
        ("[tool.apr-falsify.lanes.x]\noracle = 7\n", "oracle is 7"),
        ('[tool.apr-falsify.lanes.x]\ntokens = ["1"]\n', "a list of token ids"),
        ('[tool.apr-falsify.lanes.embedded]\ndevice = "cpu"\n', "reserved"),
        ("[tool.apr-falsify]\n", ""),
    ],
)
def test_what_no_lane_can_be_is_refused(project: Project, lanes_text: str, said: str) -> None:
    project.write(SHOW, lanes=lanes_text)
    refused(project.run(), said)


def test_an_unknown_lane_is_refused_with_the_known_ones(lanes: Project) -> None:
    refused(lanes.run("--lane", "naer"), "no lane 'naer'", "did you mean 'near'", "far")


@pytest.mark.skipif(bool(cuda_devices()), reason="CUDA is here, and it is its absence that is tested")
def test_a_gpu_lane_names_everything_that_is_missing_and_how_to_get_it(
    lanes: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    refused(
        lanes.run("-m", "falsify_toy_001", "--gpu"),
        "CUDA is not available",
        "pip install torch",
        "hf download Someone/Model-7B",
        "no program apr on PATH",
        "cargo install apr-cli",
        "far.apr does not exist",
    )


@pytest.mark.skipif(bool(cuda_devices()), reason="CUDA is here, and it is its absence that is tested")
def test_gpu_where_no_lane_is_configured_names_cuda_too(project: Project) -> None:
    refused(project.write(SHOW).run("--gpu"), "CUDA is not available", "gpu-lane")


def test_a_lane_that_lacks_its_oracle_is_refused(lanes: Project) -> None:
    refused(lanes.run("--subject=recorded:model"), "no oracle model is named", "--oracle-model=MODEL")


def test_a_path_behind_a_blank_that_leads_out_of_the_project_is_refused_with_the_right_words(
    lanes: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    refused(lanes.run("--oracle-model", str(elsewhere)), f"--oracle-model={elsewhere}", "equals sign")


def test_nothing_is_missing_for_the_embedded_default() -> None:
    assert missing_for(Lane()) == ()


REVISION = "0123456789abcdef0123456789abcdef01234567"
MEASURES = """
@pytest.mark.falsify_toy_001(level="live")
def test_x(bisection): assert bisection.kind == "consistent"
"""
BENCH = f"""
[tool.apr-falsify.lanes.bench]
oracle = "Someone/Tiny"
subject = "embedded:{TINY}"
"""


def test_a_snapshot_of_the_lanes_own_model_leaves_the_lane_its_name_and_goes_by_its_id(
    project: Project,
) -> None:
    project.write(MEASURES, lanes=BENCH)
    snapshot = project.root / "hub" / "models--Someone--Tiny" / "snapshots" / REVISION
    shutil.copytree(TINY, snapshot)
    result = project.spawn("--lane=bench", f"--oracle-model={snapshot}", "--evidence-dir=evidence")
    assert result.ret == 0
    bundle = read_bundle(project.root / "evidence" / "FALSIFY-TOY-001")
    lane = bundle.facts.lane
    assert lane.oracle is not None
    assert (lane.name, lane.oracle.model) == ("bench", "Someone/Tiny")
    assert bundle.oracle is not None
    assert bundle.oracle.provenance.model == f"Someone/Tiny@{REVISION}"
    assert verify(bundle.path).holds


def test_a_snapshot_of_another_model_is_another_set_up(project: Project) -> None:
    snapshot = project.root / "hub" / "models--Someone--Else" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    project.write(SHOW, lanes=BENCH)
    found = lane_of(project.run("-s", "--lane=bench", f"--oracle-model={snapshot}"))
    assert found.startswith("bench, changed by options cpu ")


def test_a_side_that_was_read_and_not_run_is_told_in_the_bundle(project: Project) -> None:
    trace = project.root / "trace"
    outcome = run("capture", f"embedded:{TINY}", "--tokens", "1,2,3", "--out", trace)
    assert outcome.code == 0, outcome
    bench = BENCH.replace(f"embedded:{TINY}", f"recorded:{trace}").replace("Someone/Tiny", str(TINY))
    project.write(MEASURES, lanes=bench)
    assert project.spawn("--lane=bench", "--evidence-dir=evidence").ret == 0
    lane = read_bundle(project.root / "evidence" / "FALSIFY-TOY-001").facts.lane
    assert lane.oracle is not None
    assert lane.subject is not None
    assert (lane.oracle.recorded, lane.subject.recorded) == (False, True)
