"""Sweeps as a user runs them: planned, run, ended in the middle and started again, and reported."""

from __future__ import annotations

import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import psutil
import pytest

from apr_falsify.folders import partial_prefix
from apr_falsify.traces.trace import read_trace
from tests.acceptance.programs import PROGRAM, TINY, run
from tests.faulted_checkpoints import FAULTS, write_faulted

pytestmark = pytest.mark.bare

ROOT = Path(__file__).parents[2]
QUOTER = runpy.run_path(str(ROOT / "scripts" / "quote_page.py"))

# The embedded runtime as the oracle: no torch is needed, and a job takes a fraction of a second.
SWEEP = """
[models]
tiny = "embedded:tiny"
{more_models}
[subjects]
right = "embedded:tiny"
wrong = {{ spec = "embedded:wrong", weights = "oracle" }}
q8 = {{ spec = "embedded:tiny", arithmetic = "f32; q8_0 blocks of 32" }}
[prompts]
ids = [1, 2, 3]
steps = {{ tokens = [4, 5, 6, 7], passes = [2, 1, 1] }}
[limits]
{limits}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(TINY, folder / "tiny")
    write_faulted(TINY, folder / "wrong", FAULTS["zeroed-k-bias"])
    return folder


def write(folder: Path, models: Path, *, more_models: str = "", limits: str = "") -> Path:
    for name in ("tiny", "wrong"):
        (folder / name).symlink_to(models / name)
    file = folder / "night.toml"
    file.write_text(SWEEP.format(more_models=more_models, limits=limits))
    return file


def lines(printed: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def ran(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of six jobs that has run."""
    folder = tmp_path_factory.mktemp("ran")
    done = run("sweep", "run", write(folder, models), "--workers", 2)
    assert (done.code, len(lines(done.out))) == (1, 6), done.err
    return folder / "night.sweep"


def test_the_matrix_names_the_stage_of_each_cell(ran: Path) -> None:
    told = run("sweep", "report", ran, "--format", "json")
    cells = {cell["subject"]: cell for cell in told.json["matrix"]}
    assert told.code == 1
    assert {name: cell["counts"] for name, cell in cells.items()} == {
        "right": {"consistent": 2},
        "q8": {"consistent": 2},
        "wrong": {"localised": 2},
    }
    assert cells["wrong"]["sources"] == ["layer 0 qkv_bias"]
    assert json.loads((ran / "report.json").read_text()) == told.json


def test_a_second_start_runs_nothing_and_says_the_same(ran: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in ran.glob("jobs/*/result.json")}
    again = run("sweep", "run", ran.with_name("night.toml"))
    assert (again.code, again.out) == (1, "")
    assert {path: path.stat().st_mtime_ns for path in ran.glob("jobs/*/result.json")} == before


def test_junit_has_a_test_a_job_and_only_the_wrong_ones_fail(ran: Path) -> None:
    run("sweep", "report", ran)
    suite = ElementTree.parse(ran / "report.xml").getroot()
    failed = {case.get("classname") for case in suite if case.find("failure") is not None}
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("6", "2", "0")
    assert failed == {"tiny.wrong"}


def test_a_job_is_what_its_command_says_alone(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = json.loads((ran / "jobs" / "tiny+wrong+ids" / "result.json").read_text())
    monkeypatch.chdir(ran.parent)
    alone = run("bisect", *held["job"]["arguments"], "--format", "json")
    assert (alone.code, alone.json["sources"]) == (held["exit_code"], held["bisection"]["sources"])


def test_what_came_out_otherwise_is_new_and_what_does_not_repeat_is_flaky(ran: Path, tmp_path: Path) -> None:
    run("sweep", "report", ran)
    other = tmp_path / "other.sweep"
    shutil.copytree(ran, other)
    place = other / "jobs" / "tiny+right+ids" / "result.json"
    wrong = json.loads((ran / "jobs" / "tiny+wrong+ids" / "result.json").read_text())
    held = json.loads(place.read_text())
    place.write_text(json.dumps({**held, "bisection": wrong["bisection"], "exit_code": 1}))
    since = run("sweep", "report", other, "--since", ran / "report.json", "--format", "json")
    assert [cell["new"] for cell in since.json["matrix"] if cell["new"]] == [["tiny+right+ids"]]
    both = run("sweep", "report", ran, other, "--out", tmp_path, "--format", "json")
    assert [cell["flaky"] for cell in both.json["matrix"] if cell["flaky"]] == [["tiny+right+ids"]]


def test_a_job_that_did_not_run_is_no_pass(ran: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.sweep"
    shutil.copytree(ran, fewer)
    for name in ("ids", "steps"):
        shutil.rmtree(fewer / "jobs" / f"tiny+wrong+{name}")
    told = run("sweep", "report", fewer, "--format", "json")
    assert (told.code, told.json["counts"]) == (4, {"consistent": 4, "not run": 2})


KILLS = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
WAITS = "import time\ntime.sleep(60)\n"
FILLS = "import time\nheld = bytearray(b'x') * (700 << 20)\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    ("family", "limits", "ended"),
    [
        (KILLS, "", "died"),
        (WAITS, "seconds = 8", "timed out"),
        (FILLS, 'memory = "500 MiB"', "out of memory"),
        ("raise SystemExit\n", "", "refused"),
    ],
)
def test_a_job_that_dies_says_why_and_stops_nobody(
    models: Path, tmp_path: Path, family: str, limits: str, ended: str
) -> None:
    file = write(
        tmp_path,
        models,
        more_models='bad = { spec = "embedded:tiny", family = "bad.py" }',
        limits=limits,
    )
    (tmp_path / "bad.py").write_text(family)
    names = ("bad+right+ids", "tiny+right+ids")
    jobs = [word for name in names for word in ("--job", name)]
    done = run("sweep", "run", file, "--workers", 1, *jobs)
    found = {line["id"]: line for line in lines(done.out)}
    assert [found[name]["word"] for name in names] == [ended, "consistent"], done.out
    assert done.code == found["bad+right+ids"]["exit_code"] != 0
    assert found["bad+right+ids"]["says"]
    (tmp_path / "bad.py").write_text("FAMILIES = ()\n")
    again = run("sweep", "run", file, *jobs)
    assert again.out == ""  # what failed is not run again by itself
    retried = run("sweep", "run", file, *jobs, "--retry-failed")
    assert [line["id"] for line in lines(retried.out)] == ["bad+right+ids"]


def test_what_a_job_started_ends_with_it(models: Path, tmp_path: Path) -> None:
    """A runtime's program has a session of its own."""
    start = "subprocess.Popen(['sleep', '600.25'], start_new_session=True)"
    file = write(tmp_path, models, more_models='bad = { spec = "embedded:tiny", family = "bad.py" }')
    file.write_text(f"{file.read_text()}seconds = 6\n")
    (tmp_path / "bad.py").write_text(f"import subprocess, time\n{start}\ntime.sleep(60)\n")
    done = run("sweep", "run", file, "--job", "bad+right+ids", "--job", "bad+right+ids")
    assert [line["word"] for line in lines(done.out)] == ["timed out"]
    assert not [one for one in psutil.process_iter(["cmdline"]) if "600.25" in (one.info["cmdline"] or ())]


def test_traces_are_kept_where_they_are_asked_for(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, models)
    monkeypatch.chdir(tmp_path.parent)
    file = Path(tmp_path.name, "night.toml")
    assert run("sweep", "run", file, "--job", "tiny+right+ids", "--keep", "traces").code == 0
    place = tmp_path / "night.sweep" / "jobs" / "tiny+right+ids"
    assert read_trace(place / "subject").tokens == (1, 2, 3)
    assert [path.name for path in (tmp_path / "night.sweep" / "jobs").iterdir()] == [place.name]


def test_another_sweep_in_the_same_directory_is_refused(ran: Path, tmp_path: Path) -> None:
    file = tmp_path / "day.toml"
    file.write_text(ran.with_name("night.toml").read_text())
    done = run("sweep", "run", file, "--out", ran)
    assert done.code == 2
    assert "the runs of another sweep lie here: night" in done.err


def test_what_compared_nothing_is_no_pass(ran: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(ran, out)
    place = out / "jobs" / "tiny+right+ids" / "result.json"
    held = json.loads(place.read_text())
    for row in held["bisection"]["stages"]:
        row["status"] = "not-requested"
    place.write_text(json.dumps(held))
    done = run("sweep", "report", out)
    assert done.code == 2
    assert "it passed, and compared nothing" in done.err


def test_a_sweep_that_is_killed_goes_on_where_it_was(models: Path, tmp_path: Path) -> None:
    file = write(tmp_path, models, limits="repeat = 4")
    out = tmp_path / "night.sweep"
    command = [str(PROGRAM), "sweep", "run", str(file), "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while len(list(out.glob("jobs/*/result.json"))) < 3:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = {path.parent.name for path in out.glob("jobs/*/result.json")}
    assert 3 <= len(kept) < 24
    for path in out.glob("jobs/*/result.json"):
        json.loads(path.read_text())
    done = run("sweep", "run", file, "--workers", 2)
    new = [line["id"] for line in lines(done.out)]
    assert len(new) == len(set(new)) == 24 - len(kept)
    assert not kept & set(new)
    assert not list(out.glob(f"jobs/{partial_prefix(Path('*'))}*"))
    told = run("sweep", "report", out, "--format", "json")
    assert (told.json["counts"], [cell["flaky"] for cell in told.json["matrix"]]) == (
        {"consistent": 16, "localised": 8},
        [[], [], []],
    )


def test_two_sweeps_in_one_directory(ran: Path) -> None:
    import fcntl

    with (ran / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = run("sweep", "run", ran.with_name("night.toml"))
    assert refused.code == 2
    assert "another sweep runs in this directory" in refused.err


def test_a_full_disk_leaves_no_half_of_a_run(models: Path, tmp_path: Path) -> None:
    file = write(tmp_path, models)
    script = [str(PROGRAM), "sweep", "run", str(file), "--job", "tiny+right+ids"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, preexec_fn=_full_disk)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert not list((tmp_path / "night.sweep").glob("jobs/*"))


def _full_disk() -> None:
    """Let no file grow beyond what the plan of a sweep needs."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


def test_a_model_that_goes_away_in_the_middle_is_refused_by_name(models: Path, tmp_path: Path) -> None:
    file = write(tmp_path, models, more_models='gone = "embedded:gone"')
    done = run("sweep", "run", file, "--job", "gone+right+ids")
    (line,) = lines(done.out)
    assert (done.code, line["word"]) == (2, "refused")
    assert "gone" in str(line["says"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[models\n", "is no sweep file"),
        ('[models]\na = "x"\n', "[subjects] names nothing"),
        ('[subjects]\na = "x"\n', "[models] names no model"),
        ('[modls]\na = "x"\n', "did you mean 'models'"),
        ('[models]\na = "x"\n[subjects]\nb = "{modle}"\n', "{modle} stands for nothing"),
        ('[models]\na = "x"\n[subjects]\nb = { spec = "y", models = ["c"] }\n', "no model 'c'"),
        (
            '[models]\na = "x"\n[subjects]\nb = { spec = "y", arithmetics = "f16" }\n',
            "subjects.b.arithmetics",
        ),
        ('[models]\n"a/b" = "x"\n[subjects]\nb = "y"\n', "'a/b' is no name"),
        ('[models]\na = "x"\n[subjects]\nb = "y"\n[limits]\nmemory = "8 GB"\n', "limits.memory"),
        ('[models]\na = "x"\n[subjects]\nb = "y"\n[limits]\nseconds = 0\n', "limits.seconds"),
        ('[models]\na = "x"\n[subjects]\nb = "y"\n[limits]\nrepeat = 0\n', "limits.repeat"),
        ('[models]\na = "x"\n[subjects]\nb = "y"\n[prompts]\nc = {}\n', "prompts.c needs text or tokens"),
        ('[models]\na = "x"\n[subjects]\nb = "y"\n[prompts]\nc = [1, true]\n', "prompts.c.tokens"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    done = run("sweep", "plan", file)
    assert done.code == 2
    assert says in done.err
    assert "bad.toml" in done.err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "0.0.1"}, "several versions"),
        ({"schema": "other"}, "is not as it was written"),
        ({"bisection": None}, "is not as it was written"),
        ({"bisection": {}}, "schema is None"),
        ({"exit_code": 99}, "99 is not a valid ExitCode"),
        ({"ended": "died", "bisection": None}, "exit_code is 0 of a job that died"),
        ({"sha256": "0"}, "another job of this name"),
    ],
)
def test_a_run_that_cannot_be_trusted_is_refused(
    ran: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(ran, out)
    place = out / "jobs" / "tiny+q8+ids" / "result.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **change}))
    done = run("sweep", "report", out)
    assert done.code == 2
    assert says in done.err
    assert "--mixed-versions" not in done.err or run("sweep", "report", out, "--mixed-versions").code == 1


def test_the_plan_as_others_read_it(models: Path, tmp_path: Path) -> None:
    file = write(tmp_path, models)
    matrix = json.loads(run("sweep", "plan", file, "--format", "matrix").out)
    planned = run("sweep", "plan", file, "--format", "json").json
    assert [one["job"] for one in matrix["include"]] == [job["id"] for job in planned["jobs"]]
    script = tmp_path / "array.sh"
    script.write_text(run("sweep", "plan", file, "--format", "slurm").out)
    assert "#SBATCH --array=0-5\n" in script.read_text()
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "3", "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(script)], cwd=tmp_path, env=environment, check=False, capture_output=True)
    ran = [path.name for path in (tmp_path / "night.sweep" / "jobs").iterdir()]
    assert ran == [planned["jobs"][3]["id"]]


def test_the_page_on_sweeps_says_what_its_commands_print(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    blocks = list(QUOTER["printed"](page, QUOTER["prepared"](tmp_path)))
    assert len(blocks) == page.count("\n$ ") == 5
    for command, quoted, printed in blocks:
        assert quoted == printed, command


def test_a_ray_cluster_gives_the_same_report(ran: Path, models: Path, tmp_path: Path) -> None:
    file = write(tmp_path, models)
    done = run("sweep", "run", file, "--engine", "ray", "--workers", 2)
    assert len(lines(done.out)) == 6, done.err
    reports = [
        run("sweep", "report", out, "--format", "json").json for out in (ran, tmp_path / "night.sweep")
    ]
    for report in reports:
        for job in report["jobs"]:
            del job["seconds"], job["peak"]
    assert reports[0] == reports[1]


def test_a_cluster_that_does_not_answer(models: Path, tmp_path: Path) -> None:
    file = write(tmp_path, models)
    done = run("sweep", "run", file, "--engine", "ray", "--address", "127.0.0.1:9")
    assert done.code == 2
    assert "no Ray cluster answers" in done.err
