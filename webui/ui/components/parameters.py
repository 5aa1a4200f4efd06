"""A picture's infotext as people read it: the prompt as a paragraph, the pairs as a list. Pure, everything escaped."""

from __future__ import annotations

import html

from webui.core.infotext import parse_infotext


def parameters_html(infotext: str | None) -> str:
    """The block below a gallery; "" where there is no picture. A copy button carries the text as it is in the file."""
    if not infotext:
        return ""
    info = parse_infotext(infotext)
    parts = [f"<p class='parameters-prompt'>{html.escape(info.prompt) or '<em>No prompt</em>'}</p>"]
    if info.negative_prompt:
        parts.append(f"<p class='parameters-negative'><b>Without</b> {html.escape(info.negative_prompt)}</p>")
    pairs = "".join(
        f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>" for key, value in info.pairs.items()
    )
    parts.append(f"<dl>{pairs}</dl>")
    parts.append(
        "<button type='button' class='copy-infotext' aria-label='Copy the parameters' "
        f"data-infotext='{html.escape(infotext, quote=True)}'>Copy</button>"
    )
    return f"<div class='parameters'>{''.join(parts)}</div>"


def parameters_table(infotext: str | None) -> str:
    """The same as a table, for PNG info; says so where a picture carries none."""
    if not infotext:
        return "<p class='note'>This picture carries no parameters.</p>"
    info = parse_infotext(infotext)
    rows = {"Prompt": info.prompt, "Negative prompt": info.negative_prompt, **info.pairs}
    body = "".join(
        f"<tr><th scope='row'>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
        for key, value in rows.items()
        if value
    )
    return f"<table class='parameters-table'><caption>Parameters</caption><tbody>{body}</tbody></table>"
