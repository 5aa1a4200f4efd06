"""How many tokens a prompt takes, for artists who watch the 75 of a chunk. Knows no embeddings and no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from webui.core.extra_networks import take_loras
from webui.core.prompt.chunks import CHUNK, Tokenizer, comma_token, make_chunks, plain_runs
from webui.core.prompt.composition import parse_prompt
from webui.core.prompt.editing import Pass, texts_by_step
from webui.core.prompt.emphasis import parse_emphasis

# Shares of steps become steps with little rounding, and few texts are looked at.
_STEPS = 20


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The tokens in each chunk of a prompt; a chunk that was left early counts as full, as it is paid for whole."""

    per_chunk: tuple[int, ...]

    @property
    def used(self) -> int:
        """All chunks but the last whole, and what the last one holds."""
        return CHUNK * (len(self.per_chunk) - 1) + self.per_chunk[-1]

    @property
    def room(self) -> int:
        """What the chunks hold when full."""
        return CHUNK * len(self.per_chunk)


def count_tokens(text: str, tokenizer: Tokenizer) -> TokenCount:
    """The count of `text`; of prompts joined by AND and of the texts that editing makes of them, the longest one's."""
    prompt, _ = take_loras(text)
    longest = TokenCount((0,))
    comma = comma_token(tokenizer)
    for wording in _wordings(prompt):
        chunks = make_chunks(plain_runs(parse_emphasis(wording), tokenizer), comma)
        count = TokenCount(tuple(len(chunk.tokens) for chunk in chunks))
        longest = max(longest, count, key=lambda each: each.used)
    return longest


def _wordings(prompt: str) -> Sequence[str]:
    """The different texts that are encoded for `prompt`."""
    run = Pass(steps=_STEPS)
    texts = (span.text for part in parse_prompt(prompt) for span in texts_by_step(part.pieces, run))
    return list(dict.fromkeys(texts))
