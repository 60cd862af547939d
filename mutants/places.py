"""Copies of the tree in a temporary folder, and pytest runs in them. The checkout itself is never written to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

MAP_SECONDS: Final = 3600
_PLUGIN: Final = "mutants_plugin"
_IMPORTED: Final = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # some plugins were, before the fork
_FAILED, _INTERRUPTED, _CRASHED = 1, 2, 3  # exit codes of pytest: a failed test, a failed import, its own error


def files(tree: Path) -> list[str]:
    """The files of a checkout that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=tree, check=True, capture_output=True, text=True
    ).stdout
    return [name for name in listed.splitlines() if (tree / name).is_file()]


def digest(tree: Path, *names: str) -> str:
    """A name for what these files, or the files of these folders, contain."""
    found = hashlib.sha256()
    for name in sorted(files(tree)):
        if name.startswith(names):
            found.update(name.encode() + b"\0" + (tree / name).read_bytes() + b"\0")
    return found.hexdigest()[:16]


class Place:
    """One copy of the tree."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.folder = folder
        for name in files(tree):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, folder / name)
        shutil.copy2(Path(__file__).with_name("plugin.py"), folder / f"{_PLUGIN}.py")
        subprocess.run([sys.executable, "-m", "compileall", "-q", "gateway"], cwd=folder, check=True)

    @contextmanager
    def mutated(self, path: str, text: str) -> Iterator[None]:
        """The file `path` has another text within."""
        file = self.folder / path
        before = file.read_bytes()
        _forget_bytecode(file)
        file.write_text(text)
        try:
            yield
        finally:
            file.write_bytes(before)
            _forget_bytecode(file)

    def passes(self, targets: Sequence[str], tests: Sequence[str] | None, seconds: float) -> bool:
        """Whether the chosen tests pass within `seconds`; only `tests` of the files `targets`, in this order.

        No test at all passes.
        """
        found = [target for target in targets if (self.folder / target).exists()]
        if not found:
            return True
        wanted = {}
        if tests is not None:
            (self.folder / "tests.json").write_text(json.dumps(tests))
            wanted = {"MUTANTS_TESTS": str(self.folder / "tests.json")}
        code = self.pytest(["-x", *found], wanted, seconds)
        return code not in (_FAILED, _INTERRUPTED, _CRASHED, None)

    def record(self, tests: Sequence[str], out: Path) -> None:
        """Record in the folder `out` which lines each passing test of these files executes.

        Raises:
            RuntimeError: pytest did not run them.
        """
        code = self.pytest(tests, {"MUTANTS_MAP": str(out)}, MAP_SECONDS) if tests else 0
        if code not in (0, _FAILED):
            raise RuntimeError(f"pytest ended with {code}, without any mutant:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of what pytest printed last."""
        return (self.folder / "pytest.log").read_text()[-4000:]

    def pytest(self, arguments: Sequence[str], env: Mapping[str, str], seconds: float) -> int | None:
        """Pytest's exit code in a child process; None: it was killed after `seconds`, with its children."""
        pid = os.fork()  # what this process has imported need not be imported again
        if pid == 0:
            self._child(arguments, env)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                _end_group(pid)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        _end_group(pid)
        os.waitpid(pid, 0)
        return None

    def _child(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        code: Any = _CRASHED
        try:
            os.setsid()
            os.chdir(self.folder)
            os.environ.update(env, PYTHONPATH=str(self.folder), PYTHONDONTWRITEBYTECODE="1")
            sys.dont_write_bytecode = "MUTANTS_MAP" not in env
            with (self.folder / "pytest.log").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            sys.path[:0] = [str(self.folder)]
            code = pytest.main(["-q", "-p", _PLUGIN, "-p", "no:cacheprovider", "-n", "0", *_IMPORTED, *arguments])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(int(code))


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _forget_bytecode(file: Path) -> None:
    # Python compares a file's size and its time in seconds: a mutant may have both in common with the original.
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()
