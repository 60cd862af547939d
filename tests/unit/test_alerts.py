"""deploy/monitoring/alerts.yml: each alert fires by its cause, names metrics that exist, and has a runbook section."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.process import ROOT, program

RULES = ROOT / "deploy" / "monitoring" / "alerts.yml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RUNBOOK = (ROOT / "docs" / "how-to" / "react-to-alerts.md").read_text()

NODE = '{job="gateway", instance="n1"}'
LATE = {
    f'gateway_relay_delay_seconds_bucket{{instance="n1", le="{bound}"}}': values
    for bound, values in {"0.25": "0+10x120", "1.0": "0+20x120", "+Inf": "0+20x120"}.items()
} | {'gateway_relay_delay_seconds_count{instance="n1"}': "0+20x120"}

# What causes each alert: series, one value a minute.
CAUSES: dict[str, dict[str, str]] = {
    "GatewayNodeDown": {f"up{NODE}": "1x10 0x110"},
    "GatewayNodeUnready": {f"gateway_ready{NODE}": "0x120"},
    "GatewayServerDown": {'haproxy_server_status{proxy="gw", server="gw1", state="DOWN"}': "1x120"},
    "GatewayServersMissing": {
        f"gateway_ready{NODE}": "1x120",
        'gateway_ready{job="gateway", instance="n2"}': "1x120",
        'haproxy_server_status{proxy="gw", server="gw1", state="UP", instance="lb1"}': "1x120",
    },
    "GatewayLoopLag": {
        'gateway_loop_lag_seconds_bucket{instance="n1", le="0.25"}': "0+1x120",
        'gateway_loop_lag_seconds_bucket{instance="n1", le="1.0"}': "0+20x120",
        'gateway_loop_lag_seconds_bucket{instance="n1", le="+Inf"}': "0+20x120",
    },
    "GatewayDescriptors": {f"process_open_fds{NODE}": "900x120", f"process_max_fds{NODE}": "1000x120"},
    "GatewayLogLinesDropped": {f"gateway_log_lines_dropped_total{NODE}": "0+1x120"},
    "GatewayPeriodicWorkFails": {'gateway_housekeeping_failures_total{instance="n1", step="stats"}': "0+1x120"},
    "GatewayMalformedValues": {'gateway_malformed_total{instance="n1", kind="node"}': "0+1x120"},
    "GatewayRelayDelay": LATE,
    "GatewayRelayDelaySlo": LATE,
    "GatewayLossReported": {'gateway_gaps_total{instance="n1", cause="history"}': "0+1x120"},
    "GatewaySubscriberReconnects": {f"gateway_bus_reconnects_total{NODE}": "0+1x120"},
    "GatewaySelfCheckFails": {f"up{NODE}": "1x120", f"gateway_self_check_seconds_count{NODE}": "7x120"},
    "GatewaySlowConsumers": {f"gateway_slow_consumers_total{NODE}": "0+5x120"},
    "GatewayLimitsHit": {'gateway_limited_total{instance="n1", limit="messages"}': "0+120x120"},
    "GatewayRedisDown": {f"gateway_redis_up{NODE}": "0x120"},
    "GatewayRedisImpaired": {f"gateway_redis_impaired{NODE}": "1x120"},
    "GatewayRedisMemory": {f"gateway_redis_used_bytes{NODE}": "95x120", f"gateway_redis_limit_bytes{NODE}": "100x120"},
    "RedisPersistenceFails": {'redis_aof_last_write_status{instance="r1"}': "0x120"},
    "RedisReplicationBroken": {'redis_master_link_up{instance="r2"}': "0x120"},
    "GatewayBackendOpen": {f"gateway_backend_open{NODE}": "1x120"},
    "GatewayKeyServerFails": {'gateway_key_fetches_total{instance="n1", result="failed"}': "0+1x120"},
    "GatewayCertificateExpires": {'probe_ssl_earliest_cert_expiry{instance="lb"}': "90000x120"},
}
WELL = {
    f"up{NODE}": "1x120",
    f"gateway_ready{NODE}": "1x120",
    f"gateway_redis_up{NODE}": "1x120",
    f"gateway_redis_impaired{NODE}": "0x120",
    f"gateway_redis_used_bytes{NODE}": "10x120",
    f"gateway_redis_limit_bytes{NODE}": "0x120",  # no limit is known
    f"gateway_self_check_seconds_count{NODE}": "0+30x120",
    f"gateway_bus_reconnects_total{NODE}": "2x120",
    f"process_open_fds{NODE}": "100x120",
    f"process_max_fds{NODE}": "1000x120",
    'gateway_limited_total{instance="n1", limit="messages"}': "5x120",
    'haproxy_server_status{proxy="gw", server="gw1", state="DOWN"}': "0x120",
    'haproxy_server_status{proxy="gw", server="gw1", state="UP"}': "1x120",
    'gateway_relay_delay_seconds_bucket{instance="n1", le="0.25"}': "0+20x120",
    'gateway_relay_delay_seconds_bucket{instance="n1", le="+Inf"}': "0+20x120",
    'gateway_relay_delay_seconds_count{instance="n1"}': "0+20x120",
}


def _case(series: dict[str, str], expression: str, value: int | None) -> dict[str, Any]:
    samples = [] if value is None else [{"labels": "{}", "value": value}]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": "100m", "exp_samples": samples}],
    }


def test_each_alert_has_a_cause_here() -> None:
    assert CAUSES.keys() == ALERTS.keys()


def test_each_alert_fires_by_its_cause_and_none_where_all_is_well(tmp_path: Path) -> None:
    firing = 'count(count by (alertname) (ALERTS{{alertstate="firing"{}}}))'
    cases = [_case(series, firing.format(f', alertname="{name}"'), 1) for name, series in CAUSES.items()]
    cases.append(_case(WELL, firing.format(""), None))
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}))
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(file)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_metric_of_a_rule_exists() -> None:
    code = "".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py"))
    exported = set(re.findall(r'"(gateway_[a-z_]+)"', code))
    named = set(re.findall(r"(?<![:\w])gateway_[a-z_]+", RULES.read_text()))
    assert {re.sub(r"_(total|bucket|count)$", "", name) for name in named} <= exported


@pytest.mark.parametrize("alert", ALERTS)
def test_the_runbook_explains_each_alert_and_its_confirmation(alert: str) -> None:
    found = re.search(rf"^### {alert}\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found, f"docs/how-to/react-to-alerts.md has no section {alert}"
    assert "```" in found[1], "the section names no command"


def test_kubernetes_has_the_same_rules() -> None:
    folder = ROOT / "deploy" / "kubernetes" / "monitoring"
    [rule] = yaml.safe_load_all((folder / "rules.yaml").read_text())
    assert (rule["kind"], rule["spec"]["groups"]) == ("PrometheusRule", GROUPS)
    assert "rules.yaml" in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
