"""`python -m mutants`: random mutants of gateway/, and which of them no test notices.

SEED=1 the same mutants again · COUNT=120 so many, one in seven of them Lua · FILES=core only paths that contain this
QUICK=1 only unit and Lua tests · TREE=../other another checkout, with its own tests · JOBS=2 so many at a time
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Final

from mutants.operators import Mutant, mutants
from mutants.places import Place, digest, files
from mutants.trial import Map, Outcome, try_mutant

AREAS: Final = {"pure core": "gateway/core/", "Lua": "gateway/broker/lua/", "everything": "gateway/"}
LUA_SHARE: Final = 7
_MAPPED: Final = re.compile(r"tests/(unit|lua)/test_.*\.py")
_FORK: Final = multiprocessing.get_context("fork")
# What tests import and no mutant changes: imported once, before the children are forked.
_SHARED: Final = (
    "coverage", "cryptography.x509", "httpx", "hypothesis", "jwt", "orjson", "prometheus_client", "redis.asyncio",
    "starlette.applications", "structlog", "uvicorn", "websockets.asyncio.client",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Work:
    place: Place
    known: Map
    wide: bool


def sample(texts: dict[str, str], seed: int, count: int) -> list[Mutant]:
    """`count` random mutants of all files, in random order; one in seven of them of Lua files where there are any."""
    chance = random.Random(seed)
    python, lua = (
        [mutant for path in sorted(texts) if path.endswith(suffix) for mutant in mutants(path, texts[path])]
        for suffix in (".py", ".lua")
    )
    of_lua = min(len(lua), max(count // LUA_SHARE, count - len(python)))
    found = chance.sample(python, min(len(python), count - of_lua)) + chance.sample(lua, of_lua)
    chance.shuffle(found)
    return found


def table(outcomes: Sequence[Outcome]) -> str:
    """Killed mutants by area."""
    lines = [f"{'area':12} {'mutants':>8} {'killed':>7} {'%':>6}   by no unit test executed"]
    for area, folder in AREAS.items():
        some = [outcome for outcome in outcomes if outcome.mutant.path.startswith(folder)]
        killed = sum(outcome.killed_by is not None for outcome in some)
        unseen = sum(not outcome.executed for outcome in some)
        lines.append(f"{area:12} {len(some):8} {killed:7} {100 * killed / len(some) if some else 0:6.1f}   {unseen}")
    return "\n".join(lines)


def main() -> int:
    """Run it; the exit code."""
    env = os.environ.get
    seed, count = int(env("SEED") or 1), int(env("COUNT") or 120)
    jobs, wide = int(env("JOBS") or os.cpu_count() or 1), not env("QUICK")
    tree = Path(env("TREE") or ".").resolve()
    texts = {
        name: (tree / name).read_text()
        for name in files(tree)
        if name.startswith("gateway/") and name.endswith((".py", ".lua")) and (env("FILES") or "") in name
    }
    chosen = sample(texts, seed, count)
    for name in _SHARED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="gateway-mutants-") as folder:
        works = [Place(tree, Path(folder) / str(job)) for job in range(jobs)]
        known = _map(tree, works)
        print(f"SEED={seed} COUNT={len(chosen)}, {len(known.seconds)} unit and Lua tests", flush=True)
        outcomes = []
        for outcome in _each(chosen, texts, [_Work(place, known, wide) for place in works]):
            outcomes.append(outcome)
            print(f"{len(outcomes):4} {outcome.killed_by or 'SURVIVED':12} {outcome.shown}", flush=True)
    print("\nsurvived")
    for outcome in sorted(outcomes, key=lambda outcome: outcome.shown):
        if outcome.killed_by is None:
            print(f"  {outcome.shown}{'' if outcome.executed else '  (executed by no unit test)'}")
    print(f"\n{table(outcomes)}")
    return 0


def _map(tree: Path, places: Sequence[Place]) -> Map:
    """The map of the tree's tests; of test files that an earlier run has mapped, from the temporary folder."""
    kept = Path(tempfile.gettempdir()) / f"gateway-mutants-map-{digest(tree, 'gateway/')}"
    folder = places[0].folder / "map"
    folder.mkdir()
    kept.mkdir(exist_ok=True)
    tests = {name: kept / digest(tree, name) for name in files(tree) if _MAPPED.match(name)}
    new = [name for name, at in tests.items() if not at.exists()]
    if new:
        print(f"running {len(new)} files of tests, to see which lines each test executes ...", flush=True)
        started = [
            _FORK.Process(target=place.record, args=(new[part :: len(places)], folder))
            for part, place in enumerate(places)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        if any(process.exitcode for process in started):
            sys.exit(1)
    for name, at in tests.items():
        report = folder / f"{name.replace('/', '.')}.json"
        if not at.exists():
            shutil.copy(report, at) if report.exists() else at.write_text("{}")
        else:
            shutil.copy(at, report)
    return Map(folder)


def _each(chosen: Sequence[Mutant], texts: dict[str, str], works: Sequence[_Work]) -> Iterator[Outcome]:
    """The outcomes as they come; each process has a place of its own."""
    todo: SimpleQueue[Mutant | None] = _FORK.SimpleQueue()
    done: SimpleQueue[Outcome] = _FORK.SimpleQueue()
    for mutant in [*chosen, *[None for _ in works]]:
        todo.put(mutant)

    def work(one: _Work) -> None:
        while (mutant := todo.get()) is not None:
            done.put(try_mutant(mutant, texts[mutant.path], one.known, one.place, wide=one.wide))

    for one in works:
        _FORK.Process(target=work, args=(one,), daemon=True).start()
    for _ in chosen:
        yield done.get()


if __name__ == "__main__":
    sys.exit(main())
