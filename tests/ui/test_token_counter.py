"""The counter beside a prompt; that it follows the prompt is for tests/browser."""

from __future__ import annotations

import re

from webui.core.prompt.counting import TokenCount
from webui.ui.components.token_counter import counter_html


def words(html):
    return re.sub("<[^>]*>", "", html)


def test_it_says_what_is_used_and_what_there_is():
    assert words(counter_html(TokenCount((12,)))) == "12/75"
    assert words(counter_html(TokenCount((61, 20)))) == "95/150"
    assert "61 + 20 tokens" in counter_html(TokenCount((61, 20)))
