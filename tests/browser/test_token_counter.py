"""The token counters follow what is typed."""

from __future__ import annotations

from playwright.sync_api import expect


def test_tokens_are_counted_while_typing(page):
    prompt, negative = page.locator("#txt2img_token_counter"), page.locator("#txt2img_negative_token_counter")
    expect(prompt).to_have_text("0/75")
    page.locator("#txt2img_prompt textarea").press_sequentially("a photo of a (cat:1.2) <lora:x:1>")
    expect(prompt).to_have_text("5/75")
    page.fill("#txt2img_neg_prompt textarea", "blurry BREAK dark")
    expect(negative).to_have_text("76/150")
