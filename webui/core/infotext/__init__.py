"""A request as the "parameters" text that pictures carry, in A1111's grammar, and back.

It exists so that artists can exchange settings with every program that knows this text: `grammar` is the text itself,
`mapping` the table of which pair is which field, `writing` and `pasting` the two ways between text and request, and
`foreign` says in that text what other programs write.
Everything is pure; files are the business of `webui.gallery`.
"""

from webui.core.infotext.foreign import foreign_infotext
from webui.core.infotext.grammar import Infotext, parse_infotext, write_infotext
from webui.core.infotext.pasting import KnownModels, Pasted, infotext_to_request
from webui.core.infotext.writing import format_infotext

__all__ = [
    "Infotext",
    "KnownModels",
    "Pasted",
    "foreign_infotext",
    "format_infotext",
    "infotext_to_request",
    "parse_infotext",
    "write_infotext",
]
