"""CLIP's byte-pair tokenizer, from the vocabulary that open_clip's wheel carries: nothing is downloaded.

Gives plain token ids. Start, end and padding tokens and the cutting into chunks of 75 belong to
`webui.core.prompt.chunks` and the engine. Loads no torch, for the page counts tokens before torch is there, and takes
time linear in the text but for a logarithm, for the page counts what anybody pastes.
"""

from __future__ import annotations

import functools
import gzip
import heapq
import html
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # the vocabulary's file goes on after those that CLIP was trained with
_WORD_END = "</w>"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_REMEMBERED_WORDS = 2**14


class _BytePairs:
    """The vocabulary and the order of its merges (Sennrich et al. 2016, arXiv 1508.07909, over bytes)."""

    def __init__(self, merges: list[tuple[str, str]], words: regex.Pattern[str]) -> None:
        self._alphabet = _alphabet()
        letters = list(self._alphabet.values())
        tokens = [*letters, *(letter + _WORD_END for letter in letters), *map("".join, merges), *_SPECIAL]
        self._ids: Mapping[str, int] = {token: number for number, token in enumerate(tokens)}
        self._ranks: Mapping[tuple[str, str], int] = {merge: rank for rank, merge in enumerate(merges)}
        self._words = words
        self._known = functools.lru_cache(maxsize=_REMEMBERED_WORDS)(self._word)

    def vocabulary(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """The ids of all tokens, and all merges in their order."""
        return dict(self._ids), list(self._ranks)

    def encode(self, text: str) -> list[int]:
        """The ids of clean, lower-case `text`."""
        return [number for match in self._words.finditer(text) for number in self._known(match[0])]

    def _word(self, word: str) -> tuple[int, ...]:
        if word in _SPECIAL:
            return (self._ids[word],)
        symbols = [self._alphabet[byte] for byte in word.encode()]
        symbols[-1] += _WORD_END
        return tuple(self._ids[symbol] for symbol in self._merged(symbols))

    def _merged(self, symbols: list[str]) -> list[str]:
        """`symbols` after all merges: always the pair of the lowest rank, from left to right.

        A heap of pairs takes the place of looking through all of them for each merge, which would be quadratic. A
        merged symbol moves to its left part's place, its right part becomes "".
        """
        following = list(range(1, len(symbols) + 1))
        before = list(range(-1, len(symbols) - 1))
        heap: list[tuple[int, int, str, str]] = []

        def offer(left: int) -> None:
            right = following[left]
            if right < len(symbols):
                rank = self._ranks.get((symbols[left], symbols[right]))
                if rank is not None:
                    heapq.heappush(heap, (rank, left, symbols[left], symbols[right]))

        for left in range(len(symbols) - 1):
            offer(left)
        while heap:
            _, left, first, second = heapq.heappop(heap)
            right = following[left]
            if right == len(symbols) or symbols[left] != first or symbols[right] != second:
                continue  # one of the two has been merged with another since
            symbols[left], symbols[right] = first + second, ""
            following[left] = following[right]
            if following[left] < len(symbols):
                before[following[left]] = left
            offer(left)
            if before[left] >= 0:
                offer(before[left])
        return [symbol for symbol in symbols if symbol]


def _alphabet() -> dict[int, str]:
    """A printable character for each byte, in the vocabulary's order: itself, or one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


@functools.cache
def _byte_pairs() -> _BytePairs:
    """The vocabulary, read once a process: it takes a quarter of a second and never changes."""
    import regex

    package = importlib.util.find_spec("open_clip")  # importing it would load torch
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("open_clip_torch, which brings CLIP's vocabulary, is not installed; run launch.py.")
    path = Path(package.submodule_search_locations[0]) / _VOCABULARY
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : _MERGES + 1]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    return _BytePairs(merges, regex.compile(_WORDS, regex.IGNORECASE))


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens with their ids, and its merges in their order, as transformers' tokenizer takes them."""
    return _byte_pairs().vocabulary()


class ClipTokenizer:
    """Text → CLIP token ids. Stateless apart from the shared vocabulary; any thread may call it."""

    start_token = 49406
    end_token = 49407
    length = 77  # positions of the text encoder, start and end tokens included

    def __init__(self, *, pad_token: int = end_token) -> None:
        self.pad_token = pad_token  # Stable Diffusion 1 pads with the end token

    def encode(self, text: str) -> list[int]:
        """The ids of `text` in order, lower-cased and cleaned as CLIP does, any length.

        The only special tokens are those that the text spells out, as "<|endoftext|>".
        """
        import ftfy

        clean = html.unescape(html.unescape(ftfy.fix_text(text)))
        return _byte_pairs().encode(" ".join(clean.split()).lower())
