"""What pytest loads wherever this package is installed: it looks whether the project asks for more.

Every pytest run on the machine pays for this module, so it imports nothing that pytest has not imported.
"""

from __future__ import annotations

from apr_falsify.pytest_plugin.project import OPTIONS, configured_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the options where the project is configured."""
    config = pluginmanager.get_plugin("pytestconfig")
    if config is None:
        return
    root = configured_root(config.rootpath)
    if root is not None:
        from apr_falsify.pytest_plugin.options import add_options

        add_options(parser)
    elif _has_own_option(config.invocation_params.args) and configured_root(config.invocation_params.dir):
        from apr_falsify.pytest_plugin.options import path_taken_for_a_test

        raise path_taken_for_a_test(config)


def _has_own_option(arguments: tuple[object, ...]) -> bool:
    """Whether an option of ours is followed by a blank and a value that could be a path."""
    return any(one in OPTIONS for one in arguments)


def pytest_configure(config: pytest.Config) -> None:
    """Register the part that works where the project is configured."""
    if config.getoption("help", False) or configured_root(config.rootpath) is None:
        return
    from apr_falsify.pytest_plugin.session import register

    register(config)
