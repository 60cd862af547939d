"""Every setting of a node, read from the environment once."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import settings as settings_module
from gateway.settings import PREFIX, Settings, SettingsError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
FIELDS = dataclasses.fields(Settings)
SECRETS = ["JWT_SECRET", "API_KEY", "REDIS_URL", "BACKEND_SECRET", "BACKEND_URL"]


def read(**variables: str) -> Settings:
    """Settings from these, each behind its prefix."""
    return Settings.from_env({PREFIX + name: text for name, text in variables.items()}, hostname=lambda: "web-1")


def complaint(**variables: str) -> str:
    """The sentence that stops the start."""
    with pytest.raises(SettingsError) as refused:
        read(**variables)
    return str(refused.value)


# ---- good values


def test_an_empty_environment_gives_the_defaults_and_the_host_name() -> None:
    assert read() == Settings(node="web-1", advertise="127.0.0.1:9000")


def test_what_is_not_ours_is_not_read() -> None:
    foreign = {"PORT": "no", "GATEWAYPORT": "no", "gateway_port": "no", "HOME": "/", "GATEWAY_URL": "http://x"}
    assert Settings.from_env(foreign, hostname=lambda: "web-1") == read()


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_an_empty_value_counts_as_not_set(field: dataclasses.Field[object]) -> None:
    expected = "" if field.name == "namespace" else getattr(read(), field.name)
    assert getattr(read(**{field.name.upper(): ""}), field.name) == expected


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("HOST", "0.0.0.0", "0.0.0.0"),
        ("HOST", "::1", "::1"),
        ("PORT", "0", 0),
        ("PORT", "65535", 65535),
        ("ADVERTISE", "10.0.0.7:9000", "10.0.0.7:9000"),
        ("ADVERTISE", "[fd00::7]:65535", "[fd00::7]:65535"),
        ("NODE", "web-2.example_x", "web-2.example_x"),
        ("REDIS_URL", "redis://h:6379/0", "redis://h:6379/0"),
        ("REDIS_URL", "rediss://ann:secret@h:6380/1?ssl_cert_reqs=none", "rediss://ann:secret@h:6380/1?ssl_cert_reqs=none"),
        ("REDIS_URL", "unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("REDIS_URL", "redis+sentinel://:pw@a,b:26380/live", "redis+sentinel://:pw@a,b:26380/live"),
        ("REDIS_URL", "rediss+sentinel://a/live/2", "rediss+sentinel://a/live/2"),
        ("NAMESPACE", "", ""),
        ("NAMESPACE", "test:", "test:"),
        ("JWT_SECRET", " any text é ", " any text é "),
        ("API_KEY", "k", "k"),
        ("ORIGINS", "https://a.example, http://localhost:5173 ,", ("https://a.example", "http://localhost:5173")),
        ("ORIGINS", "http://[::1]:80", ("http://[::1]:80",)),
        ("ORIGINS", "HTTPS://App.example", ("https://app.example",)),
        *(("ORIGINS", origin, (origin,)) for origin in (
            "capacitor://localhost", "ionic://localhost", "ionic://", "tauri://localhost", "file://", "null",
            "chrome-extension://abcdefghijklmnop", "moz-extension://1f0a-22", "app://obsidian.md", "http://tauri.localhost",
        )),
        ("HOSTS", "live.example, *.Apps.example,", ("live.example", "*.apps.example")),
        ("OPEN", "1", True),
        ("OPEN", "0", False),
        ("TRUSTED_PROXIES", "10.0.0.0/8, ::1,192.168.1.7/24", ("10.0.0.0/8", "::1", "192.168.1.7/24")),
        ("LOG_LEVEL", "debug", "debug"),
        ("MAX_MESSAGE_BYTES", "1024", 1024),
        ("COMPRESSION", "1", True),
        ("CENTRIFUGO", "1", True),
        ("FAST_PATHS", "0", False),
        ("CENTRIFUGO_EXP", "optional", "optional"),
        ("CENTRIFUGO_PERSONAL", "1", True),
        ("MAX_CLIENT_TOPICS", "1", 1),
        ("CLIENT_BUFFER_BYTES", "1073741824", 1 << 30),
        ("PING_SECONDS", "1", 1.0),
        ("PONG_SECONDS", "0.5", 0.5),
        ("LEASE_SECONDS", "600", 600.0),
        ("REDIS_TIMEOUT_SECONDS", "0.1", 0.1),
        ("BACKEND_URL", "https://api.example:8443/v1/", "https://api.example:8443/v1/"),
        ("BACKEND_URL", "http://[::1]:3000", "http://[::1]:3000"),
        ("BACKEND_SECRET", "s", "s"),
        ("BACKEND_TIMEOUT_SECONDS", "0.5", 0.5),
        ("BACKEND_CONNECTIONS", "1", 1),
        ("WAIT_REPLICAS", "2", 2),
        ("WAIT_FSYNC", "1", True),
        ("WAIT_SECONDS", "0.01", 0.01),
        ("DRAIN_SECONDS", "0", 0.0),
    ],
)  # fmt: skip
def test_a_good_value_is_read(name: str, text: str, value: object) -> None:
    found = getattr(read(**{name: text}), name.lower())
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("hostname", "node"),
    [("web-1.example", "web-1.example"), ("anns pc", "anns-pc"), ("x" * 100, "x" * 64), ("é", "-"), ("", "node")],
)
def test_a_node_without_a_name_takes_the_hosts(hostname: str, node: str) -> None:
    assert Settings.from_env({}, hostname=lambda: hostname).node == node
    assert Settings.from_env({"GATEWAY_NODE": ""}, hostname=lambda: hostname).node == node
    assert read(NODE=node).node == node


@pytest.mark.parametrize(
    ("host", "reached"), [("10.0.0.7", "10.0.0.7"), ("fd00::7", "[fd00::7]"), ("0.0.0.0", "web-1"), ("::", "web-1")]
)
def test_a_node_is_reached_where_it_listens_or_by_its_hosts_name(host: str, reached: str) -> None:
    assert read(HOST=host, PORT="9001").advertise == f"{reached}:9001"
    assert read(HOST=host, ADVERTISE="gw.example:80").advertise == "gw.example:80"


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().port = 1  # type: ignore[misc]


# ---- bad values

BAD = [
    ("HOST", "a b"),
    ("HOST", "http://a"),
    ("PORT", "http"),
    ("PORT", "65536"),
    ("PORT", "-1"),
    ("PORT", "9000 "),
    ("PORT", "9_000"),
    ("PORT", "1e3"),
    ("PORT", "9" * 5000),
    ("ADVERTISE", "10.0.0.7"),
    ("ADVERTISE", "10.0.0.7:0"),
    ("ADVERTISE", "10.0.0.7:65536"),
    ("ADVERTISE", "fd00::7:9000"),
    ("ADVERTISE", "http://10.0.0.7:9000"),
    ("NODE", "web 1"),
    ("NODE", "x" * 65),
    ("NODE", "web\n"),
    ("REDIS_URL", "localhost:6379"),
    ("REDIS_URL", "http://localhost"),
    ("REDIS_URL", "redis://a b"),
    ("REDIS_URL", "redis+sentinel://a,b"),
    ("REDIS_URL", "redis+sentinel://a,b/"),
    ("REDIS_URL", "redis+sentinel://a,b/live/x"),
    ("REDIS_URL", "unix+sentinel://a/live"),
    ("NAMESPACE", "gw {x}"),
    ("BACKEND_URL", "api:3000"),
    ("BACKEND_URL", "http://api/?key=1"),
    ("BACKEND_URL", "http://ann:secret@api"),
    ("BACKEND_TIMEOUT_SECONDS", "0"),
    ("BACKEND_CONNECTIONS", "0"),
    ("JWKS_URL", "keys.example"),
    ("JWKS_URL", "file:///etc/keys"),
    ("JWKS_SECONDS", "9"),
    ("JWT_LEEWAY_SECONDS", "601"),
    ("REVOCATION_SECONDS", "59"),
    ("ORIGINS", "app.example"),
    ("ORIGINS", "https://app.example/path"),
    ("ORIGINS", "https://good.example,*"),
    ("ORIGINS", "capacitor://localhost/"),
    ("ORIGINS", "file:///"),
    ("ORIGINS", "Null"),
    ("ORIGINS", "https://"),
    ("ORIGINS", "https://a b"),
    ("ORIGINS", "https://a:99999"),
    ("ORIGINS", "https://a:0"),
    ("ORIGINS", "https://user@a"),
    ("ORIGINS", "https://[::1"),
    ("ORIGINS", "https://-a"),
    ("ORIGINS", "file://:80"),
    ("ORIGINS", "://a"),
    ("ORIGINS", "localhost"),
    ("HOSTS", "live.example:8080"),
    ("HOSTS", "https://live.example"),
    ("HOSTS", "*"),
    ("HOSTS", "a.*.b"),
    ("OPEN", "true"),
    ("OPEN", "yes"),
    ("OPEN", "2"),
    ("DEFAULT_SUBSCRIBE", "everyone"),
    ("DEFAULT_SUBSCRIBE", "owner"),
    ("DEFAULT_PUBLISH", "admin"),
    ("DEFAULT_PUBLISH", "token"),
    ("TRUSTED_PROXIES", "proxy.example"),
    ("TRUSTED_PROXIES", "10.0.0.0/33"),
    ("TRUSTED_PROXIES", "10.0.0.1,*"),
    ("LOG_LEVEL", "DEBUG"),
    ("LOG_LEVEL", "loud"),
    ("MAX_MESSAGE_BYTES", "1023"),
    ("MAX_MESSAGE_BYTES", "1M"),
    ("COMPRESSION", "deflate"),
    ("CENTRIFUGO", "on"),
    ("FAST_PATHS", "off"),
    ("CENTRIFUGO_EXP", "0"),
    ("CENTRIFUGO_PERSONAL", "on"),
    ("MAX_CLIENT_TOPICS", "0"),
    ("CLIENT_BUFFER_BYTES", "1"),
    ("BUFFER_BYTES", "256M"),
    ("MAX_CONNECTIONS", "all"),
    ("CONNECTS_PER_SECOND", "0"),
    ("MAX_USER_CONNECTIONS", "-1"),
    ("MAX_ADDRESS_CONNECTIONS", "many"),
    ("USER_PUBLISHES_PER_SECOND", "1e2"),
    ("USER_STORED_BYTES", "32M"),
    ("REDIS_MEMORY_BYTES", "-1"),
    ("CLIENT_MESSAGES_PER_SECOND", "0"),
    ("CLIENT_SUBSCRIPTIONS_PER_SECOND", "1.5"),
    ("CLIENT_LOG_LINES_PER_SECOND", "10001"),
    ("PING_SECONDS", "0"),
    ("PING_SECONDS", "nan"),
    ("PING_SECONDS", "inf"),
    ("PONG_SECONDS", "-1"),
    ("PONG_SECONDS", "0.4"),
    ("LEASE_SECONDS", "10s"),
    ("LEASE_SECONDS", "601"),
    ("REDIS_TIMEOUT_SECONDS", "0"),
    ("DRAIN_SECONDS", "1e9"),
    ("PRESENCE_GRACE_SECONDS", "-1"),
    ("WAIT_REPLICAS", "17"),
    ("WAIT_REPLICAS", "one"),
    ("WAIT_SECONDS", "0"),
    ("WAIT_FSYNC", "yes"),
]


def test_every_setting_that_can_be_bad_is_tried() -> None:
    any_text = {"JWT_SECRET", "JWT_SECRET_PREVIOUS", "JWT_PEM", "JWT_AUDIENCE", "JWT_ISSUER"}
    any_text |= {"API_KEY", "API_KEYS", "BACKEND_SECRET", "TOPICS"}
    assert {name for name, _ in BAD} == {f.name.upper() for f in FIELDS} - any_text


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_stops_the_start_with_one_sentence_that_names_it(name: str, text: str) -> None:
    says = complaint(**{name: text})
    assert says.startswith(f"{PREFIX}{name} must be ")
    assert "\n" not in says and len(says) < len(text) * 2 + 300
    assert not re.search(r"\. [A-Z]", says)
    assert (repr(text) in says) == (name not in SECRETS)


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(FIELDS), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12))
def test_any_value_is_read_or_stops_the_start_with_one_sentence(field: dataclasses.Field[object], text: str) -> None:
    variable = PREFIX + field.name.upper()
    try:
        found = Settings.from_env({variable: text}, hostname=lambda: "web-1")
    except SettingsError as error:
        says = str(error)
    else:
        says = f"{variable} was read as {getattr(found, field.name)!r}"
    assert says.startswith(variable) and "\n" not in says


def test_a_secret_is_never_shown() -> None:
    for name in SECRETS:
        try:
            shown = repr(read(**{name: "hunter two", "PORT": "no"}))
        except SettingsError as error:
            shown = str(error)
        assert "hunter" not in shown


@pytest.mark.parametrize("name", ["JWT_SECRET", "API_KEY", "BACKEND_SECRET"])
def test_a_secret_that_is_no_text_stops_the_start_unseen(name: str) -> None:
    # An environment's bytes that are not UTF-8 come as lone surrogates.
    says = complaint(**{name: "hunter\udcff two"})
    assert says.startswith(f"{PREFIX}{name} must be ")
    assert "hunter" not in says and says.isprintable()


# ---- unknown variables


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("PROT", "PORT"),
        ("PORTS", "PORT"),
        ("port", "PORT"),
        ("REDISURL", "REDIS_URL"),
        ("REDIS", "REDIS_URL"),
        ("JWT_SECERT", "JWT_SECRET"),
        ("APIKEY", "API_KEY"),
        ("ORIGIN", "ORIGINS"),
        ("MAX_MESSAGE_BYTE", "MAX_MESSAGE_BYTES"),
        ("LEASE", "LEASE_SECONDS"),
        ("LEASE_MS", "LEASE_SECONDS"),
        ("DRAIN_SECS", "DRAIN_SECONDS"),
        ("LOGLEVEL", "LOG_LEVEL"),
    ],
)
def test_an_unknown_variable_names_the_near_one(wrong: str, near: str) -> None:
    assert complaint(**{wrong: "1"}) == f"GATEWAY_{wrong} is not a setting of the gateway; did you mean GATEWAY_{near}?"


def test_an_unknown_setting_without_a_similar_name_points_to_the_list() -> None:
    says = complaint(XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX="1")
    assert says.endswith("is not a setting of the gateway; docs/reference/settings.md lists all settings")


def test_an_unknown_variable_stops_the_start_even_if_it_is_empty() -> None:
    assert complaint(PROT="").startswith("GATEWAY_PROT is not a setting")


def test_the_value_of_an_unknown_variable_is_never_shown() -> None:
    assert "hunter" not in complaint(JWT_SECERT="hunter two")


# ---- settings that must fit each other


def test_a_client_must_be_able_to_take_the_largest_message() -> None:
    assert read(MAX_MESSAGE_BYTES="65536", CLIENT_BUFFER_BYTES="65536").client_buffer_bytes == 65536
    says = complaint(MAX_MESSAGE_BYTES="65537", CLIENT_BUFFER_BYTES="65536")
    assert says.startswith("GATEWAY_CLIENT_BUFFER_BYTES (65536) must be at least GATEWAY_MAX_MESSAGE_BYTES (65537)")


def test_replicas_must_answer_before_redis_would_count_as_lost() -> None:
    assert read(WAIT_REPLICAS="1", WAIT_SECONDS="1.9").wait_replicas == 1
    assert read(WAIT_SECONDS="5").wait_seconds == 5.0  # without replicas it means nothing
    says = complaint(WAIT_REPLICAS="1", WAIT_SECONDS="2")
    assert says.startswith("GATEWAY_WAIT_SECONDS (2) must be below GATEWAY_REDIS_TIMEOUT_SECONDS (2)")


# ---- secrets in files


@pytest.mark.parametrize("name", sorted(settings_module.SECRETS))
def test_each_secret_can_be_in_a_file_whose_last_line_break_does_not_count(tmp_path: Path, name: str) -> None:
    file = tmp_path / "secret"
    value = {"redis_url": "redis://r:1/2", "backend_url": "http://b"}.get(name, "a secret\nof two lines")
    file.write_text(f"{value}\n")
    assert getattr(read(**{f"{name.upper()}_FILE": str(file)}), name) == value
    assert read(**{f"{name.upper()}_FILE": ""}) == read()


def test_a_file_of_a_secret_that_cannot_be_used_is_named_and_its_content_is_not(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    assert complaint(API_KEY_FILE=str(file)).startswith(f"GATEWAY_API_KEY_FILE: {file} cannot be read: ")
    file.write_text("\n")
    assert complaint(API_KEY_FILE=str(file)) == f"GATEWAY_API_KEY_FILE: {file} is empty; write the secret into it"
    file.write_text("hunter two")
    both = complaint(API_KEY_FILE=str(file), API_KEY="hunter two")
    assert both == "GATEWAY_API_KEY and GATEWAY_API_KEY_FILE are both set; unset one of them"
    assert complaint(NODE_FILE=str(file)).startswith("GATEWAY_NODE_FILE is not a setting")
    assert "hunter" not in complaint(REDIS_URL_FILE=str(file))


# ---- what the page says


def _table() -> dict[str, list[str]]:
    """The page's settings table: variable -> the other cells."""
    rows = [line.strip().strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {row[0].strip("`"): row[1:] for row in cells if row[0].startswith(f"`{PREFIX}")}


def test_the_page_lists_every_setting_and_no_other() -> None:
    expected = {PREFIX + field.name.upper() for field in FIELDS}
    found = _table().keys()
    assert not expected - found, f"missing in {PAGE.name}: {sorted(expected - found)}"
    assert not found - expected, f"in {PAGE.name}, but no setting: {sorted(found - expected)}"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_the_page_states_each_default_and_its_meaning(field: dataclasses.Field[object]) -> None:
    variable = PREFIX + field.name.upper()
    default, about = _table().get(variable, ["(not in the table)", ""])
    assert about == field.metadata["about"]
    # What is written there, set, is what there is when nothing is.
    assert read(**{field.name.upper(): default.strip("`")}) == read() or (default, field.name) == ("", "namespace")


def test_unsafe_settings_get_a_warning_without_secrets() -> None:
    assert Settings().warnings() == []
    strong = "x" * 32
    assert Settings(jwt_secret=strong, api_key=strong, backend_url="http://b", backend_secret=strong).warnings() == []
    said = Settings(jwt_secret="hush", open=True, backend_url="http://b").warnings()
    assert [sentence.split()[0] for sentence in said] == [
        "GATEWAY_BACKEND_SECRET",
        "GATEWAY_OPEN=1:",
        "GATEWAY_JWT_SECRET",
    ]
    assert "hush" not in "".join(said)
