"""Where no project asks for it the plugin does nothing and loads nothing."""

from __future__ import annotations

import pytest

from tests.unit.pytest_plugin.conftest import Project

WHAT_IS_LOADED = """
def test_what_is_loaded():
    import sys
    ours = sorted(name for name in sys.modules if name.startswith("apr_falsify"))
    foreign = sorted({"yaml", "numpy", "click", "torch", "rich"} & sys.modules.keys())
    print("loaded:", ours, foreign)
"""
ENTRY_ALONE = (
    "loaded: ['apr_falsify', 'apr_falsify.pytest_plugin', 'apr_falsify.pytest_plugin.entry', "
    "'apr_falsify.pytest_plugin.project'] []"
)


@pytest.mark.parametrize(
    "pyproject",
    ["", "[project]\nname = 'other'\ndependencies = ['apr-falsify']\n", "[tool.apr-falsify-other]\nx = 1\n"],
    ids=["no pyproject", "a project that depends on it", "another tool"],
)
def test_only_its_entry_is_loaded(project: Project, pyproject: str) -> None:
    if pyproject:
        project.file("pyproject.toml", pyproject)
    project.file("test_x.py", WHAT_IS_LOADED)
    result = project.spawn("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"*{ENTRY_ALONE.replace('[', '[[]')}*"])
    result.stdout.no_fnmatch_line("*falsifiers*")


def test_its_options_are_unknown(project: Project) -> None:
    project.file("test_x.py", "def test_x(): pass\n")
    result = project.run("--gpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --gpu*"])


def test_it_can_be_switched_off_in_a_configured_project(project: Project) -> None:
    project.write("@pytest.mark.falsify_toy_001\ndef test_x(): pass\n")
    strict = project.spawn("-p", "no:apr_falsify")
    assert strict.ret == pytest.ExitCode.INTERRUPTED, "nobody knows the marker"
    result = project.spawn("-p", "no:apr_falsify", "-o", "addopts=", "-W", "ignore")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*SURVIVED*")


def test_a_broken_settings_file_is_left_to_pytest(project: Project) -> None:
    project.file("pyproject.toml", "[tool.apr-falsify\n")
    project.file("test_x.py", "def test_x(): pass\n")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pyproject.toml*"])


def test_help_tells_the_options_of_a_configured_project(project: Project) -> None:
    project.write("")
    project.file("contracts/toy-v1.yaml", "broken: [\n")
    project.run("--help").stdout.fnmatch_lines(["*--gpu*", "*--lane=NAME*", "*--evidence-dir=DIR*"])
