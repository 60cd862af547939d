"""gateway.core.json_text: decoded values can be encoded again."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import json_text


def nested(depth: int, form: str = "[]") -> bytes:
    """A JSON value of so many levels."""
    left, right = {"[]": (b"[", b"]"), "{}": (b'{"a":', b"}")}[form]
    return left * depth + (b"" if form == "[]" else b"1") + right * depth


@settings(deadline=None)
@given(st.integers(0, 300), st.sampled_from(["[]", "{}"]), st.text("[{", max_size=300))
def test_what_loads_gives_can_be_written_again(depth: int, form: str, harmless: str) -> None:
    text = b'[%s,"%s"]' % (nested(depth, form) if depth else b"1", harmless.encode())
    if depth < json_text.MAX_NESTING:
        assert orjson.dumps(json_text.loads(text)) == text
    else:
        with pytest.raises(ValueError, match="nested deeper than 254"):
            json_text.loads(text)


@pytest.mark.parametrize("form", ["[]", "{}"])
def test_the_deepest_that_loads_gives_has_max_nesting_levels(form: str) -> None:
    assert orjson.dumps(json_text.loads(nested(json_text.MAX_NESTING, form))) == nested(json_text.MAX_NESTING, form)
    with pytest.raises(ValueError, match="nested deeper"):
        json_text.loads(nested(json_text.MAX_NESTING + 1, form))
