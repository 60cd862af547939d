"""URLs in settings: each is valid, or rejected with an error that shows no secret."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.broker.topology import Topology
from gateway.core.urls import MAX_URL_CHARACTERS, RedisUrl, UrlError, check_http, parse_redis
from gateway.settings import Settings, SettingsError

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://h", RedisUrl("single", (("h", 6379),))),
        ("redis://[::1]:7/", RedisUrl("single", (("::1", 7),))),
        ("redis://redis_1.local.:6380/15", RedisUrl("single", (("redis_1.local.", 6380),), database=15)),
        ("redis://u:a%40b%2Fc%23d%3Fe%25f:g@h", RedisUrl("single", (("h", 6379),), "", "", 0, "u", "a@b/c#d?e%f:g")),
        ("redis://:pw@h?db=3", RedisUrl("single", (("h", 6379),), database=3, password="pw")),
        ("redis://ann:@h", RedisUrl("single", (("h", 6379),), user="ann")),
        (
            "rediss://h/1?ssl_cert_reqs=none&ssl_check_hostname=false&ssl_ca_certs=/a@b/c%20d",
            RedisUrl(
                "single", (("h", 6379),), database=1, tls=True,
                tls_options={"ssl_cert_reqs": "none", "ssl_check_hostname": False, "ssl_ca_certs": "/a@b/c d"},
            ),
        ),
        ("unix:///run/re%20dis.sock?db=2&password=p", RedisUrl("unix", (), "/run/re dis.sock", "", 2, None, "p")),
        ("unix://ann:pw@/run/r.sock", RedisUrl("unix", path="/run/r.sock", user="ann", password="pw")),
        (
            "redis+sentinel://:pw@a,[::1]:3/live/7",
            RedisUrl("sentinel", (("a", 26379), ("::1", 3)), "", "live", 7, None, "pw"),
        ),
        ("rediss+cluster://a:1,b/", RedisUrl("cluster", (("a", 1), ("b", 6379)), tls=True)),
    ],
)  # fmt: skip
def test_a_url_is_understood_whole(url: str, found: RedisUrl) -> None:
    assert parse_redis(url) == found
    assert SECRET not in repr(found)


BAD = [
    (f"redis://:{SECRET}#x@h:1", "%23"),
    (f"redis://:{SECRET}/x@h:1", "%2F"),
    (f"redis://:x/{SECRET}@h:1", "%2F"),
    (f"redis://:6379/{SECRET}@h", "%2F"),
    (f"redis://:{SECRET}?x@h:1", "%3F"),
    (f"redis://:{SECRET}?db=1@h", "%3F"),
    (f"redis://:{SECRET}@x@h:1", "%40"),
    (f"redis://:{SECRET}%@h", "%25"),
    (f"redis://:{SECRET}%zz@h", "%25"),
    (f"redis://:{SECRET}%ff@h", "UTF-8"),
    (f"redis://:{SECRET}%00@h", "NUL"),
    (f"redis://:{SECRET} @h", "%20"),
    (f"redis://:{SECRET}\n@h", "%20"),
    (f"redis://:{SECRET}ü@h", "percent-encode"),
    (f"redis://{SECRET}@h", "user:password@host"),
    (f"redis://:{SECRET}", "host is empty"),
    (f"redis://ann:{SECRET}", "port"),
    (f"redis://:{SECRET}@", "host is empty"),
    (f"redis://:{SECRET}@h:", "port"),
    (f"redis://:{SECRET}@h:0", "port"),
    (f"redis://:{SECRET}@h:65536", "port"),
    (f"redis://:{SECRET}@h:63 79", "%20"),
    (f"redis://:{SECRET}@h:6379a", "port"),
    (f"redis://:{SECRET}@h:-1", "port"),
    (f"redis://:{SECRET}@:6379", "host is empty"),
    (f"redis://:{SECRET}@/0", "host is empty"),
    (f"redis://:{SECRET}@a,b", "redis+cluster://"),
    (f"redis://:{SECRET}@::1:6379", "brackets"),
    (f"redis://:{SECRET}@[::1", "brackets"),
    (f"redis://:{SECRET}@[::1]x", "brackets"),
    (f"redis://:{SECRET}@[1:2]:3", "IPv6"),
    (f"redis://:{SECRET}@h/live", "database number"),
    (f"redis://:{SECRET}@h/-1", "database number"),
    (f"redis://:{SECRET}@h/1/2", "database number"),
    (f"redis://:{SECRET}@h/99999", "database number"),
    (f"redis://:{SECRET}@h/1?db=2", "twice"),
    (f"redis://:{SECRET}@h?db=1&db=2", "twice"),
    (f"redis://:{SECRET}@h?db=", "empty"),
    (f"redis://:{SECRET}@h?db", "empty"),
    (f"redis://:{SECRET}@h?password={SECRET}", "twice"),
    (f"redis://h?passwd={SECRET}", "an unknown option"),
    (f"redis://:{SECRET}@h?max_connections=5", "an unknown option"),
    (f"redis://:{SECRET}@h?protocol=3", "an unknown option"),
    (f"redis://:{SECRET}@h?socket_timeout=5", "GATEWAY_REDIS_TIMEOUT_SECONDS"),
    (f"redis://:{SECRET}@h?ssl_cert_reqs=none", "rediss"),
    (f"rediss://:{SECRET}@h?ssl_cert_reqs=never", "none, optional, required"),
    (f"rediss://:{SECRET}@h?ssl_check_hostname=maybe", "true"),
    (f"redis+cluster://:{SECRET}@h?db=1", "an unknown option"),
    (f"redis+cluster://:{SECRET}@a,,b", "host is empty"),
    (f"redis+cluster://:{SECRET}@a/0", "no database number"),
    (f"redis+sentinel://:{SECRET}@a", "service"),
    (f"redis+sentinel://:{SECRET}@a/", "service"),
    (f"redis+sentinel://:{SECRET}@a/live/x", "database number"),
    (f"unix://{SECRET}/x", "unix:///run/redis.sock"),
    (f"unix://:{SECRET}@", "unix:///run/redis.sock"),
    (f"http://:{SECRET}@h", "redis://"),
    (f"REDIS://:{SECRET}@h", "redis://"),
    (f"redis:/:{SECRET}@h", "redis://"),
    (f"redis+tls://:{SECRET}@h", "rediss://"),
    (SECRET, "redis://"),
    ("redis://h/" + "0" * MAX_URL_CHARACTERS, "longer"),
]


@pytest.mark.parametrize(("url", "names"), BAD)
def test_a_bad_url_of_redis_is_refused_in_one_sentence_without_the_secret(url: str, names: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"GATEWAY_REDIS_URL": url})
    says = str(caught.value)
    assert says.startswith("GATEWAY_REDIS_URL must be a Redis URL, but ") and names in says
    assert SECRET not in says and says.isprintable() and len(says) < 300
    assert not re.search(r"\. [A-Z]", says)


def pieces(secret: str) -> st.SearchStrategy[str]:
    """Text made of what URLs are made of, with `secret` somewhere."""
    parts = st.sampled_from(
        [*":/?#[]@!$&'()*+,;=% .-_", "%40", "%zz", "host", "6379", "db=1", "::1", "ssl_cert_reqs=none"]
    )
    some = st.lists(st.one_of(parts, st.text(max_size=4)), max_size=8).map("".join)
    schemes = ["redis://", "rediss://", "unix://", "unix:///", "redis+sentinel://", "rediss+cluster://"]
    heads = st.sampled_from([*schemes, "redis://:", "redis://u:", ""])
    return st.tuples(heads, some, some).map(lambda three: f"{three[0]}{three[1]}{secret}{three[2]}")


@settings(deadline=None, max_examples=1500)
@given(pieces("Zq7Xw9"), st.sampled_from(["REDIS_URL", "BACKEND_URL", "JWKS_URL"]))
@example("redis://[Zq7Xw9", "REDIS_URL")
@example("http://[Zq7Xw9", "BACKEND_URL")
@example("https://a:Zq7Xw9@[", "JWKS_URL")
def test_any_url_is_a_usable_configuration_or_one_sentence_without_the_secret(url: str, name: str) -> None:
    try:
        found = Settings.from_env({f"GATEWAY_{name}": url.replace("redis", "http") if name != "REDIS_URL" else url})
    except SettingsError as error:
        says = str(error)
        assert says.startswith(f"GATEWAY_{name} must be ") and says.isprintable()
        assert ("Zq7Xw9" not in says) or (name == "JWKS_URL" and "@" not in url)
        return
    if name == "REDIS_URL" and not found.redis_url.startswith("rediss"):  # TLS files of any name are not there
        Topology(found.redis_url, timeout_seconds=1)


@pytest.mark.parametrize(
    "url",
    [
        "http://api:99999",
        "http://api:0",
        "http://:80",
        "http://",
        "http://[::1",
        "http://a:b:c",
        "http://api/%zz",
        "http://api/ x",
        "http://ann:hunter2@api",
        "http://api#x",
        "ftp://api",
    ],
)
def test_a_bad_http_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UrlError) as caught:
        check_http(url, what="http://api:3000", query=True)
    assert SECRET not in str(caught.value)
    for name in ("BACKEND_URL", "JWKS_URL"):
        with pytest.raises(SettingsError) as refused:
            Settings.from_env({f"GATEWAY_{name}": url})
        assert SECRET not in str(refused.value)


def test_a_tls_file_that_is_missing_stops_the_start() -> None:
    with pytest.raises(SettingsError, match=r"ssl_ca_certs.*cannot be used: No such file"):
        Topology("rediss://:hunter2@h?ssl_ca_certs=/nowhere/ca.pem", timeout_seconds=1)
