"""Programs of this environment that start at once, for pages that run many of them.

Nine tenths of a short bisection go into importing torch and transformers. ``warm(folder)`` starts one
process that has imported them, and writes ``apr-falsify``, ``validate-contracts`` and ``python`` into
``folder``, which then stands first on PATH. Each of these hands its arguments, environment, directory and
standard streams to that process, which forks a child that does the rest: the same code, in a process of its
own. ``python`` with an option is the real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

PRELOADED = (
    "numpy",
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "tokenizers",
    "apr_falsify.commands.bisect",
    "apr_falsify.commands.capture",
)
"""What is imported before the first program starts, where it is installed."""

ENTRIES = {
    "apr-falsify": "apr_falsify.commands.main",
    "validate-contracts": "apr_falsify.commands.validate_contracts",
}

_CLIENT = """#!{python} -IS
import json, os, socket, sys
if {name!r} == "python" and (len(sys.argv) < 2 or sys.argv[1].startswith("-")):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
said = {{"name": {name!r}, "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    socket.send_fds(line, [b"."], [0, 1, 2])
    line.sendall(json.dumps(said).encode())
    line.shutdown(socket.SHUT_WR)
    left = line.recv(16)
sys.exit(int(left) if left else 137)
"""


@contextlib.contextmanager
def warm(folder: Path) -> Iterator[Path]:
    """Run the process that has imported everything, while the programs in ``folder`` are used."""
    address = str(folder / "line")
    for name in (*ENTRIES, "python"):
        program = folder / name
        program.write_text(
            _CLIENT.format(python=sys.executable, name=name, address=address), encoding="utf-8"
        )
        program.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address])
    try:
        while not os.path.exists(address):
            if server.poll() is not None:
                raise RuntimeError("the process that programs are forked from did not start")
            time.sleep(0.01)
        yield folder
    finally:
        server.terminate()
        server.wait()


def _serve(address: str) -> None:
    for name in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):
            __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(address + ".new")
        line.listen()
        os.rename(address + ".new", address)  # it is there once it answers
        while True:
            caller, _ = line.accept()
            with caller:
                if os.fork() == 0:
                    line.close()
                    _child(caller)


def _child(caller: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(caller, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    with caller.makefile("rb") as words:
        said = json.loads(words.read())
    os.chdir(said["folder"])
    os.environ.clear()
    os.environ.update(said["environment"])
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - open as long as the process is
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
    code = _ended(said["name"], said["arguments"])
    for written in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, ValueError):  # nobody reads it any more
            written.flush()
    caller.sendall(str(code).encode())
    os._exit(0)


def _ended(name: str, arguments: list[str]) -> int:
    """Run the program and return its exit code."""
    try:
        if name == "python":
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent.resolve()))
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            sys.argv = [name, *arguments]
            __import__(ENTRIES[name])
            sys.modules[ENTRIES[name]].main()
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        print(left.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1])
