"""Change the layout: run in the root of a clean checkout, with the Python of its .venv (mypy and ruff are needed)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__" and Path(sys.prefix).resolve() != (Path.cwd() / ".venv").resolve():
    os.execv(".venv/bin/python", [".venv/bin/python", str(Path(__file__).resolve()), *sys.argv[1:]])
sys.path.insert(0, str(HERE))

import names  # noqa: E402
import patches  # noqa: E402
import prose  # noqa: E402
from engine import Plan, Renamer, Text, World, annotate, docstrings, git, rewrite_imports, references, slots_and_all, split, stand_ins  # noqa: E402


def file_of(module: str) -> str:
    """The file of a module, in the old tree."""
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if Path(path).is_dir() else f"{path}.py"


def test_moves(modules: dict[str, str]) -> dict[str, str]:
    """Where the unit tests go: into the folders of the modules that they mirror."""
    moves = {}
    bases: dict[str, list[str]] = defaultdict(list)
    known = {p[:-3].replace("/", "."): p for p in git("ls-files", "gateway/*.py").split()}
    for module in known:
        bases[module.rsplit(".", 1)[1]].append(module)
    for path in git("ls-files", "tests/unit/test_*.py").split():
        base = Path(path).stem.removeprefix("test_")
        home = patches.TEST_OF.get(base)
        if home is None:
            text = Path(path).read_text()
            found = bases.get(base, [])
            if len(found) > 1:  # the one that it imports
                used = [m for m in found if re.search(rf"{re.escape(m)}\b|from {re.escape(m.rpartition('.')[0])} import .*\b{base}\b", text)]
                found = used or found
            home = found[0] if found else None
        if not home:
            continue
        new = modules.get(home, home).split(".")[1:]
        moves[path] = "/".join(["tests/unit", *new[:-1], f"test_{new[-1]}.py"])
        if new[:-1] == [] and moves[path] == path:
            del moves[path]
    taken: dict[str, str] = {}
    for old, new in list(moves.items()):
        if new in taken:
            moves[old] = new[:-3] + "_" + Path(old).stem.removeprefix("test_") + ".py"
        taken[moves[old]] = old
    return moves


def main(result: object = None) -> int:
    """Do all of it."""
    began = time.monotonic()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if git("status", "--porcelain").strip():
        print("commit first", file=sys.stderr)
        return 1
    patches.before()
    modules = dict(names.MODULES)
    for old in list(modules):
        if not Path(old.replace(".", "/")).is_dir() and not Path(file_of(old)).exists():
            print(f"gone: module {old}")
            del modules[old]
    for path in git("ls-files", "gateway/*.py").split():  # those below a renamed package that are not listed
        module = path[:-3].replace("/", ".").removesuffix(".__init__")
        parent = module.rpartition(".")[0]
        if module not in modules and parent in modules and not module.endswith("__init__"):
            modules[module] = f"{modules[parent]}.{module.rpartition('.')[2]}"
            print(f"new: {module} -> {modules[module]}")
    unit = test_moves(modules)
    for old, new in unit.items():
        modules[old[:-3].replace("/", ".")] = new[:-3].replace("/", ".")
    # Names without a place in the map stay where their package goes.
    plan = Plan(modules, names.SYMBOLS, names.MEMBERS, names.PARAMS, names.WORDS, names.SPLITS, names.IMPLEMENTS)
    roots = [one for one in ("gateway", "stack", "tests", "chaos", "bench", "fuzz", "examples", "mutants") if Path(one).is_dir()]
    files = [p for p in git("ls-files", *roots).split() if p.endswith(".py")]
    world = World(plan, files, result)
    print(f"{time.monotonic() - began:.0f} s: read {len(world.trees)} files")
    new_texts: dict[str, str] = {}
    problems: list[str] = []
    untyped: list[str] = []
    renamers = []
    for path, tree in sorted(world.trees.items()):
        text = Text(path)
        renamer = Renamer(tree, text, plan, world.result.types, world)
        renamer.visit_MypyFile(tree)
        annotate(renamer)
        renamers.append(renamer)
    by_name: dict[str, set[str]] = defaultdict(set)
    for full in world.infos:
        if full.startswith("gateway."):
            by_name[full.rsplit(".", 1)[1]].add(full)
    unique = {name: next(iter(fulls)) for name, fulls in by_name.items() if len(fulls) == 1}
    for renamer in renamers:
        slots_and_all(renamer)
        if renamer.text.path in names.STAND_INS:
            stand_ins(renamer, names.STAND_INS[renamer.text.path])
        docstrings(renamer)
        references(renamer, unique)
        rewrite_imports(renamer)
        new_texts[renamer.text.path] = renamer.text.apply()
        problems += renamer.text.problems
        untyped += renamer.untyped
    print(f"{time.monotonic() - began:.0f} s: names resolved")

    # ---- files
    moves: dict[str, str] = {}
    for path in files:
        module = path[:-3].replace("/", ".")
        package = module.endswith(".__init__")
        module = module.removesuffix(".__init__")
        new = modules.get(module, module)
        if package:
            continue
        target = new.replace(".", "/") + ".py"
        if target != path:
            moves[path] = target
    for lua in git("ls-files", "gateway/cluster/lua").split():
        stem = Path(lua).stem
        moves[lua] = f"gateway/broker/lua/{names.LUA.get(stem, stem)}.lua"
    moves.update(patches.moves())
    # Out of the way first, since a file may take the place of another, or of a folder.
    for old in moves:
        Path(old + ".moving").parent.mkdir(exist_ok=True)
        git("mv", old, old + ".moving")
    for old, new in moves.items():
        Path(new).parent.mkdir(parents=True, exist_ok=True)
        git("mv", old + ".moving", new)
    splits: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for full, target in plan.splits.items():
        module, name = full.rsplit(".", 1)
        splits[module][target].add(names.SYMBOLS.get(full, name))
    for path, content in new_texts.items():
        target = moves.get(path, path)
        module = path[:-3].replace("/", ".")
        if module in splits:
            for where, part in split(content, splits[module], modules.get(module, module), {}).items():
                file = Path(where.replace(".", "/") + ".py")
                file.parent.mkdir(parents=True, exist_ok=True)
                if where != modules.get(module, module):
                    part = f'"""{patches.SPLIT_DOCS[where]}"""\n\nfrom __future__ import annotations\n\n' + part.replace("from __future__ import annotations\n", "", 1)
                file.write_text(part)
        else:
            Path(target).write_text(content)
    for path in ("gateway/web/__init__.py", "gateway/transport/__init__.py"):
        if Path(path).exists():
            git("rm", "-q", "-f", path)
    for path, doc in names.PACKAGES.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(f'"""{doc}"""\n')
    for new in unit.values():
        for parent in Path(new).parents:
            if str(parent).startswith("tests/unit/"):
                (parent / "__init__.py").touch()
    Path("gateway/py.typed").touch()

    # ---- what is no name of Python's
    git("add", "-A")
    prose.rewrite(modules, moves, names)
    patches.after(moves)
    git("add", "-A")
    subprocess.run([".venv/bin/ruff", "check", "-q", "--select", "F401,I001,RUF022,RUF023", "--fix", "."], check=False)
    prose.wrap(code=False)
    subprocess.run([".venv/bin/ruff", "format", "-q", "."], check=False)
    for _ in range(3):
        if not prose.wrap():
            break
    subprocess.run([".venv/bin/ruff", "format", "-q", "."], check=False)
    git("add", "-A")
    for key in sorted({*names.SYMBOLS, *names.MEMBERS} - plan.used):
        print("unused:", key)
    for problem in problems:
        print("problem:", problem)
    Path(HERE / "untyped.txt").write_text("\n".join(untyped) + "\n")
    print(f"{time.monotonic() - began:.0f} s: done, {len(moves)} files moved, {len(untyped)} untyped uses in untyped.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
