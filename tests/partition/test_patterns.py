"""Regular expressions in adapters' configs: usual ones pass, those that never end do not."""

from __future__ import annotations

import pytest

from blockzoo.errors import SourceError
from blockzoo.partition.adapter_config import is_targeted, rank_and_alpha
from blockzoo.partition.patterns import may_take_forever

MODULE = "model.layers.11.self_attn.q_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        r"(.*\.)?(q_proj)$",
        r".*\.layers\.(0|1|2)\..*(q|v)_proj",
        r"model\.layers\.[0-9]+\.self_attn\.q_proj",
        r"^(?!.*vision).*(?:q_proj|v_proj).*$",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)",
    ],
)
def test_usual_patterns_may_be_tried(pattern: str) -> None:
    assert not may_take_forever(pattern, len(MODULE))


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(.*)*x", "(a|a)*b", "(a{1,9}){1,9}", "(?=(a+))*", ".*" * 9, "a?" * 30, "a" * 5000],
)
def test_patterns_that_never_end_are_refused(pattern: str) -> None:
    assert may_take_forever(pattern, len(MODULE))
    with pytest.raises(SourceError, match="could take for ever"):
        rank_and_alpha({"rank_pattern": {pattern: 2}}, MODULE)
    with pytest.raises(SourceError, match="could take for ever"):
        is_targeted({"target_modules": pattern}, MODULE)
