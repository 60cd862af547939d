"""Keys of the HTTP API: read, found, and good for no more than they say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.auth import api_keys
from gateway.auth.api_keys import ApiKeys, ApiKeysError
from gateway.core.identity import AuthError, Identity
from gateway.settings import Settings

DIGEST = hashlib.sha256(b"k").hexdigest()


def table(name: str = "feed", digest: str = DIGEST, scopes: str = '"read"') -> str:
    return f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = [{scopes}]\n'


def test_a_new_key_is_found_by_what_is_pasted_and_by_nothing_else() -> None:
    secret, pasted = api_keys.new("price-feed", ["read", "publish:token:*"])
    assert secret not in pasted
    keys = ApiKeys(api_keys.parse(pasted, "keys.toml"))
    found = keys.find(secret.encode())
    assert found is not None and found.name == "price-feed"
    for other in (b"", secret.encode() + b" ", secret[:-1].encode(), found.digest, found.digest.hex().encode()):
        assert keys.find(other) is None


def test_a_key_permits_only_its_scopes() -> None:
    [reader, feed, chief] = api_keys.parse(
        table("r")
        + table("f", "1" * 64, '"publish:token:*", "publish:news"')
        + table("c", "2" * 64, '"publish", "admin"'),
        "keys.toml",
    )
    assert api_keys.ALL_SCOPES == ("read", "publish", "services", "admin")
    assert [reader.may(scope) for scope in api_keys.ALL_SCOPES] == [True, False, False, False]
    assert [feed.may(scope) for scope in api_keys.ALL_SCOPES] == [False, True, False, False]
    assert [chief.may(scope) for scope in api_keys.ALL_SCOPES] == [False, True, False, True]
    assert feed.may_publish("token:x") and feed.may_publish("news") and not feed.may_publish("newsroom")
    assert chief.may_publish("anything") and not reader.may_publish("news")


def test_reporting_services_takes_a_scope_of_its_own() -> None:
    [part, whole, other] = api_keys.parse(
        table("p", "1" * 64, '"services:price-*"')
        + table("w", "2" * 64, '"services"')
        + table("o", "3" * 64, '"publish", "publish:price-feed", "read", "admin"'),
        "keys.toml",
    )
    assert [key.may("services") for key in (part, whole, other)] == [True, True, False]
    assert [key.may("publish") for key in (part, whole)] == [False, False]
    assert part.may_report("price-feed") and not part.may_report("prices") and not part.may_publish("price-feed")
    assert whole.may_report("anything") and not other.may_report("price-feed")


def test_a_read_key_subscribes_to_all_topics_and_other_keys_open_no_socket() -> None:
    keys = ApiKeys(
        api_keys.parse(table() + table("feed-2", hashlib.sha256(b"f").hexdigest(), '"publish"'), "keys.toml")
    )
    assert keys.identify("k") == Identity(reads_all=True)
    assert keys.identify("unknown") is None
    with pytest.raises(AuthError, match="feed-2 does not have the scope read"):
        keys.identify("f")


def test_the_key_of_the_setting_is_good_for_everything(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(table())
    keys = api_keys.load(Settings(api_key="s3cret", api_keys=str(file)))
    found = keys.find(b"s3cret")
    assert (
        found is not None
        and found.name == api_keys.SINGLE_KEY_NAME
        and all(found.may(scope) for scope in api_keys.ALL_SCOPES)
    )
    assert keys.find(b"k") is not None
    assert not api_keys.load(Settings())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("key = 5", "in two brackets"),
        ("[[keys]]", "in two brackets"),
        ("[[key]", "keys.toml: "),
        (table(name="a b"), "key 1: name must be"),
        (table() + table(), "'feed' names two keys"),
        (table(name="GATEWAY_API_KEY"), "names two keys"),
        (table() + table("other"), "two keys are the same"),
        (table(digest="k"), r"key 1 \(feed\): sha256 must be"),
        (table(digest=DIGEST.upper()), "sha256 must be"),
        (table(scopes=""), "scopes must list"),
        (table(scopes='"root"'), "scopes must list"),
        (table(scopes='"publish:' + "*" * 10 + '"'), "scopes must list"),
        (table(scopes=", ".join(f'"publish:t{at}"' for at in range(101))), "scopes must list"),
        (table(scopes='"publish:no topic"'), "scopes must list"),
        (table(scopes='"services:"'), "scopes must list"),
        (table(scopes='"admin:x"'), "scopes must list"),
        (table() + "extra = 1\n", "'extra' is not known"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ApiKeysError, match=reason):
        api_keys.parse(text, "keys.toml")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ApiKeysError, match="GATEWAY_API_KEYS: /nowhere cannot be read"):
        api_keys.load(Settings(api_keys="/nowhere"))


def test_no_key_shows_its_digest() -> None:
    [key] = api_keys.parse(table(), "keys.toml")
    assert DIGEST not in repr(key) and str(key.digest) not in repr(key)


@pytest.mark.parametrize("pattern", ['a"b', "a\\b", 'x","admin', "#$&'"])
def test_a_pattern_of_a_new_key_stays_one_string_of_its_table(pattern: str) -> None:
    _, table = api_keys.new("k", [f"publish:{pattern}"])
    [key] = api_keys.parse(table, "keys.toml")
    assert key.scopes == (f"publish:{pattern}",)


def test_replaced_keys_are_named_and_the_digest_leaves_out_the_key_of_the_setting(tmp_path: Path) -> None:
    tables = {name: api_keys.new(name, ["read"])[1] for name in ("a", "b")}
    file = tmp_path / "keys.toml"

    def load(*names: str, api_key: str = "s3cret") -> api_keys.ApiKeys:
        file.write_text("".join(tables[name] for name in names))
        return api_keys.load(Settings(api_key=api_key, api_keys=str(file)))

    keys = load("a")
    assert keys.digest == load("a", api_key="other").digest != load("a", "b").digest
    assert keys.replace(load("b")) == (["b"], ["a"])
    assert keys.digest == load("b").digest
    changed = tables["b"].replace('"read"', '"admin"')
    tables["b"] = changed
    assert keys.replace(load("b")) == (["b"], ["b"])  # its scopes have changed
