"""A capture leaves a whole trace or nothing at all, whatever interrupts it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.errors import LayerRangeError, OutputError, StageError, TokensError, TraceError
from apr_falsify.model.stages import STAGES, Key, Layout, Scope
from apr_falsify.model.wiring import stages_of
from apr_falsify.traces.capture import MemorySink, Request, TraceWriter
from apr_falsify.traces.provenance import Provenance
from apr_falsify.traces.stage_files import INCOMPLETE, scan
from apr_falsify.traces.trace import read_trace
from tests.unit.helpers import open_to_all, run_script, small_geometry
from tests.unit.traces import TOKENS, everything_under, write_trace

ALL = tuple(STAGES)
BLOCK = np.ones((5, 16), dtype=np.float32)


def finish(writer: TraceWriter | MemorySink) -> None:
    writer.finish(provenance=Provenance(runtime="test"), geometry=small_geometry(), tokens=TOKENS)


# what to keep


def request(**changes: object) -> Request:
    values = {"tokens": TOKENS, "layers": range(2), "stages": ALL, **changes}
    return Request(**values)


def test_every_stage_that_the_model_has_is_kept_in_forward_order() -> None:
    geometry = small_geometry()
    keys = request().keys(geometry)
    per_layer = [name for name in stages_of(geometry) if STAGES[name].scope is Scope.LAYER]
    expected = [Key(0, "embedding")]
    expected += [Key(layer, name) for layer in range(2) for name in per_layer]
    assert list(keys) == [*expected, Key(None, "final_norm"), Key(None, "lm_head")]
    assert len(per_layer) == 16


def test_whole_model_stages_are_kept_only_where_all_layers_run() -> None:
    assert Key(None, "lm_head") not in request(layers=range(1)).keys(small_geometry())
    assert Key(None, "lm_head") not in request(layers=range(1, 2)).keys(small_geometry())


def test_the_embedding_belongs_to_layer_0_alone() -> None:
    keys = request(layers=range(1, 2), stages=("embedding", "attn_norm")).keys(small_geometry())
    assert keys == (Key(1, "attn_norm"),)


def test_the_bias_stage_is_kept_only_where_the_model_has_a_bias() -> None:
    only = request(stages=("qkv_bias",), layers=range(1))
    assert only.keys(small_geometry()) == ()
    assert only.keys(small_geometry(model_type="qwen2")) == (Key(0, "qkv_bias"),)


@pytest.mark.parametrize("layers", [range(0, 3), range(2, 3), range(-1, 1)])
def test_layers_that_the_model_does_not_have_are_refused(layers: range) -> None:
    with pytest.raises(LayerRangeError):
        request(layers=layers).check(small_geometry())


@pytest.mark.parametrize("tokens", [(), (32,), (0, -1)])
def test_tokens_that_the_model_does_not_have_are_refused(tokens: tuple[int, ...]) -> None:
    with pytest.raises(TokensError) as refusal:
        request(tokens=tokens).check(small_geometry())
    assert refusal.value.expected


@pytest.mark.parametrize("stages", [(), ("moe_router",), ("qkv_bias",)])
def test_a_request_that_would_keep_nothing_is_refused(stages: tuple[str, ...]) -> None:
    with pytest.raises(StageError, match="none of the stages") as refusal:
        request(stages=stages).check(small_geometry())
    assert "attn_scores" in refusal.value.expected


# in memory


def test_in_memory_values_and_layouts_are_kept_as_they_are() -> None:
    sink = MemorySink()
    sink.add(Key(0, "attn_out"), BLOCK, (Layout.LAST_TOKEN,))
    trace = sink.finish(provenance=Provenance(runtime="x"), geometry=small_geometry(), tokens=TOKENS)
    assert trace.stages[0, "attn_out"].data is BLOCK
    assert trace.stages[0, "attn_out"].layout == (Layout.LAST_TOKEN,)
    assert trace.path is None


# on disk


def test_a_finished_trace_stands_alone_in_its_place(tmp_path: Path) -> None:
    write_trace(tmp_path / "run")
    assert os.listdir(tmp_path) == ["run"]
    assert not (tmp_path / "run" / INCOMPLETE).exists()


def test_nothing_is_in_its_place_before_it_is_finished(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run") as writer:
        writer.add(Key(0, "attn_out"), BLOCK)
        assert not (tmp_path / "run").exists()
        (partial,) = tmp_path.iterdir()
        with pytest.raises(TraceError, match="did not finish"):
            scan(partial)


def test_a_layout_is_written_and_read_back(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run") as writer:
        writer.add(Key(0, "q_post_rope"), BLOCK.reshape(4, 5, 4), (Layout.HEAD_MAJOR,))
        finish(writer)
    stage = read_trace(tmp_path / "run").stages[0, "q_post_rope"]
    assert stage.data.shape == (4, 5, 4)
    assert stage.layout == (Layout.HEAD_MAJOR,)


def test_two_runs_write_identical_stage_files(tmp_path: Path) -> None:
    for name in "ab":
        write_trace(tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.bin"))
    assert len(files) == 35
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interrupted_capture_leaves_nothing(tmp_path: Path, interruption: type[BaseException]) -> None:
    def interrupted() -> None:
        with TraceWriter(tmp_path / "new" / "folders" / "run") as writer:
            writer.add(Key(0, "attn_out"), BLOCK)
            raise interruption

    with pytest.raises(interruption):
        interrupted()
    assert everything_under(tmp_path) == set()


def test_a_capture_that_never_finishes_leaves_nothing(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run") as writer:
        writer.add(Key(0, "attn_out"), BLOCK)
    assert everything_under(tmp_path) == set()


def test_folders_that_were_there_before_or_hold_other_things_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with TraceWriter(tmp_path / "old" / "new" / "run"):
        (tmp_path / "old" / "new" / "other").touch()
    assert everything_under(tmp_path) == {"old", "old/new", "old/new/other"}


@pytest.mark.parametrize("kind", ["directory", "file", "dangling-link"])
def test_an_existing_target_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "run"
    make = {"directory": target.mkdir, "file": target.touch, "dangling-link": lambda: target.symlink_to("x")}
    make[kind]()
    with pytest.raises(OutputError, match="exists already") as refusal:
        TraceWriter(target)
    assert refusal.value.where == str(target)
    assert "--out" in refusal.value.remedy
    assert everything_under(tmp_path) == {"run"}


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "rival").mkdir()
    (tmp_path / "rival" / "file").touch()
    with TraceWriter(tmp_path / "run") as writer:
        writer.add(Key(0, "attn_out"), BLOCK)
        (tmp_path / "rival").rename(tmp_path / "run")
        with pytest.raises(OutputError):
            finish(writer)
    assert everything_under(tmp_path) == {"run", "run/file"}


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written") as refusal:
        TraceWriter(tmp_path / "file" / "run")
    assert refusal.value.where == str(tmp_path / "file" / "run")


def test_a_parent_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    tmp_path.chmod(0o555)
    script = """
from pathlib import Path
from apr_falsify.traces.capture import TraceWriter
from apr_falsify.errors import OutputError
become_nobody()
for name in ("run", "new/run"):
    try:
        TraceWriter(Path(sys.argv[1]) / name)
    except OutputError as error:
        print(error.what)
"""
    done = run_script(script, tmp_path)
    assert done.stdout.count("Permission denied") == 2, done.stderr
    assert everything_under(tmp_path) == set()


def test_a_place_that_may_not_be_looked_into_is_refused(tmp_path: Path) -> None:
    (open_to_all(tmp_path) / "closed").mkdir(mode=0o700)
    script = """
from pathlib import Path
from apr_falsify.traces.capture import TraceWriter
from apr_falsify.errors import AprFalsifyError
from apr_falsify.traces.stage_files import scan
from apr_falsify.traces.trace import read_trace
from apr_falsify.formats.weights import open_model
become_nobody()
place = Path(sys.argv[1]) / "closed" / "run"
for use in (TraceWriter, open_model, read_trace, scan):
    try:
        use(place)
    except AprFalsifyError as error:
        print(error)
"""
    done = run_script(script, tmp_path)
    assert done.stdout.count("Permission denied") == 4, done.stderr
    assert done.stdout.count(str(tmp_path / "closed" / "run")) == 4


def test_the_trace_has_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_trace(tmp_path / "run")
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o750


_FILLING = """
from pathlib import Path
import numpy as np
from apr_falsify.model.stages import Key
from apr_falsify.traces.capture import TraceWriter
from apr_falsify.errors import OutputError
def fill(target, count):
    try:
        with TraceWriter(target) as writer:
            for layer in range(count):
                writer.add(Key(layer, "attn_out"), np.ones((500, 500), np.float32))
    except OutputError as error:
        print(error)
"""


def test_a_file_size_limit_ends_the_capture_with_nothing_left(tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
fill(Path(sys.argv[1]) / "run", 2)
"""
    done = run_script(_FILLING + script, tmp_path)
    assert "File too large" in done.stdout, done.stderr
    assert str(tmp_path / "run") in done.stdout
    assert "nothing was left behind" in done.stdout
    assert everything_under(tmp_path) == set()


@pytest.fixture
def small_disk(tmp_path: Path):
    mount = shutil.which("mount")
    place = tmp_path / "disk"
    place.mkdir()
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=1500k", "tmpfs", place], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("this user cannot mount a small file system; the limit of file sizes is tested instead")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_ends_the_capture_with_nothing_left(small_disk: Path) -> None:
    done = run_script(_FILLING + 'fill(Path(sys.argv[1]) / "run", 3)', small_disk)
    assert "No space left on device" in done.stdout, done.stderr
    assert "nothing was left behind" in done.stdout
    assert everything_under(small_disk) == set()


_KILLED = """
from pathlib import Path
import numpy as np, time
from apr_falsify.model.stages import Key
from apr_falsify.traces.capture import TraceWriter
with TraceWriter(Path(sys.argv[1])) as writer:
    writer.add(Key(0, "attn_out"), np.ones((5, 16), np.float32))
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["run", "run [1]*"])
def test_a_killed_capture_leaves_nothing_that_is_accepted_and_the_next_one_sweeps_it(
    tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    command = [sys.executable, "-c", "import sys\n" + _KILLED, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    (left,) = tmp_path.iterdir()
    for read in (read_trace, scan):
        with pytest.raises(TraceError):
            read(left)
    write_trace(target)
    assert os.listdir(tmp_path) == [name]
    assert len(read_trace(target).stages) == 35


def test_what_a_living_capture_writes_is_not_swept(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run") as first:
        first.add(Key(0, "attn_out"), BLOCK)
        write_trace(tmp_path / "run2")
        with TraceWriter(tmp_path / "run") as second:
            second.add(Key(0, "attn_out"), BLOCK)
        finish(first)
    assert read_trace(tmp_path / "run").stages.keys() == {Key(0, "attn_out")}


def test_ctrl_c_in_a_running_capture_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys\n" + _KILLED, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    assert process.returncode != 0
    assert everything_under(tmp_path) == set()
