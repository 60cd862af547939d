"""The browser client: its own tests, run by node; its classic script; its size; its package."""

from __future__ import annotations

import json
import random
import re
import subprocess
from pathlib import Path

import minify  # type: ignore[import-untyped]

import gateway
from gateway.core import fossil_delta
from gateway.http import pages
from gateway.http.pages import STATIC

TESTS = Path(__file__).parent.parent / "node"
CLIENT = STATIC / "client"
# Of the classic script, minified, but with the long names of private members; 5.6 KB compressed. New since 10 KB:
# the server's limits, changes of mind about a topic, rejected tokens and unavailable addresses, deltas and filters.
MOST_BYTES = 16_000


def run(*words: str | Path, at: Path = CLIENT) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run(words, cwd=at, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass() -> None:
    printed = run("node", "--test", at=TESTS)
    assert "# fail 0" in printed
    assert "# skipped 0" in printed


def test_the_classic_script_is_the_module_with_one_global(tmp_path: Path) -> None:
    exported = re.findall(r"^export (?:class|function\*?) (\w+)", (CLIENT / "gateway.js").read_text(), re.MULTILINE)
    script = tmp_path / "page.cjs"
    script.write_text(f"{pages.classic_script()}\nconsole.log(Object.keys(gateway).join(), gateway.Gateway.name);")
    assert run("node", script) == f"{','.join(exported)} Gateway\n"


def test_it_is_small() -> None:
    minified = minify.string("application/javascript", pages.classic_script())
    assert len(minified.encode()) < MOST_BYTES


def test_it_applies_the_deltas_of_the_node(tmp_path: Path) -> None:
    chance = random.Random(7)
    words = [b"price", b"\xc3\xa9\xe2\x82\xac", b"the same in each message", b'"volume":', b"0123456789" * 20, b"~"]
    made: list[tuple[bytes, bytes]] = []
    for _ in range(300):
        old = b"".join(chance.choices(words, k=chance.randint(0, 40)))
        new = b"".join(chance.choices(words, k=5)) + old[: len(old) // 2] + chance.choice(words) + old[len(old) // 2 :]
        made.append((old, new.decode(errors="ignore").encode()))
    pairs = [(old, new, delta) for old, new in made if (delta := fossil_delta.create(old, new)) is not None]
    assert len(pairs) > 200
    file = tmp_path / "deltas.json"
    file.write_text(json.dumps([[part.hex() for part in pair] for pair in pairs]))
    program = tmp_path / "deltas.mjs"
    program.write_text(f"""
        import {{ readFileSync }} from "node:fs";
        import {{ applyDelta }} from "{CLIENT}/gateway.js";
        const bytes = (hex) => new Uint8Array(Buffer.from(hex, "hex"));
        const fails = (base, delta) => {{
          try {{ applyDelta(base, delta); }} catch {{ return true; }}
          return false;
        }};
        let good = 0;
        for (const [old, text, delta] of JSON.parse(readFileSync("{file}", "utf8"))) {{
          const applied = Buffer.from(applyDelta(bytes(old), bytes(delta))).toString("hex");
          const damaged = bytes(delta).fill(0x30, -3, -2); // a digit of the checksum
          const same = damaged.every((byte, at) => byte === bytes(delta)[at]);
          const refused = fails(bytes(old), bytes(delta).slice(0, -1)) && (same || fails(bytes(old), damaged));
          good += applied === text && refused;
        }}
        const wrong = ["", "5", "5\\n", "5\\n5@0,", "zzzzzz\\n1:a0;", "1\\n9:a0;", "0\\n1@9,0;", "0\\n0;x", "~~~\\n"];
        console.log(good, wrong.every((text) => fails(bytes(""), new TextEncoder().encode(text))));
    """)
    assert run("node", program) == f"{len(pairs)} true\n"


def test_it_is_a_package_of_the_gateways_own_version() -> None:
    [package] = json.loads(run("npm", "pack", "--dry-run", "--json", "--ignore-scripts", "--offline"))
    assert package["version"] == gateway.__version__
    assert {file["path"] for file in package["files"]} == {
        "README.md", "package.json", "gateway.js", "gateway.http.js", "gateway.d.ts", "messages.d.ts",
    }  # fmt: skip
