"""The load generator: load.c, built with cc, in its own process; each call sends one command."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.machine import LOAD_CORE, on

HERE = Path(__file__).parent
SPARE_SECONDS = 15.0  # in addition to a command's own duration


class LoadError(Exception):
    """The load generator failed, or did not answer in time."""


def build(source: str, folder: Path) -> Path:
    """Compiles the C file `source` of this folder; returns the program.

    Raises:
        LoadError: There is no compiler, or it fails.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise LoadError("a C compiler is needed: apt-get install gcc libc6-dev")
    program = folder / Path(source).stem
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, HERE / source],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        raise LoadError(f"cc could not compile {source}:\n{done.stderr}")
    return program


class Load:
    """A running load generator; `folder` stores scripts and templates."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._folder = folder
        self._files = 0
        with on(LOAD_CORE):
            self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def file(self, content: bytes) -> Path:
        """Writes a script or a template to a file; returns its path."""
        self._files += 1
        path = self._folder / f"load-{self._files}"
        path.write_bytes(content)
        return path

    def ask(self, command: str, seconds: float, /, **words: object) -> dict[str, Any]:
        """Sends a command that takes at most `seconds`; returns the answer.

        Raises:
            LoadError: The generator did not answer in time, or exited.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = " ".join([command, *(f"{name}={value}" for name, value in words.items())])
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], seconds + SPARE_SECONDS)[0]:
                raise LoadError(f"the load generator did not answer within {seconds + SPARE_SECONDS:g} s: {line}")
            more = os.read(self._process.stdout.fileno(), 1 << 20)
            if not more:
                raise LoadError(f"the load generator exited: {answer.decode()}")
            answer += more
        document: dict[str, Any] = json.loads(answer)
        if "error" in document:
            raise LoadError(str(document["error"]))
        return document

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
