"""The Grafana dashboard shows every metric of a node, and only metrics and labels that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from gateway.app import create_app
from gateway.settings import Settings
from tests.kit.process import ROOT, program

DASHBOARD = ROOT / "deploy" / "monitoring" / "grafana" / "dashboards" / "gateway.json"
PANELS: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


def exported() -> dict[str, str]:
    """The metric families of a node with everything turned on: name -> type."""
    node = create_app(Settings(node="n1", backend_url="http://b", jwks_url="https://keys.example/jwks")).state.node
    return {family.name: family.type for family in node.metrics.registry.collect()}


def test_every_exported_metric_is_on_the_dashboard_and_every_other_is_haproxys() -> None:
    ends = {"counter": "_total", "histogram": "_bucket"}
    samples = {name + ends.get(kind, "") for name, kind in exported().items()}
    shown = {name for query in QUERIES for name in re.findall(r"\b(?:gateway|process|haproxy)_[a-z_]+", query)}
    assert not samples - shown, f"on no panel: {sorted(samples - shown)}"
    assert all(name.startswith("haproxy_") for name in shown - samples)


def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"query{at}", "expr": query.replace("$__rate_interval", "1m")} for at, query in enumerate(QUERIES)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(file)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
