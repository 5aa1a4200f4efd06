"""Signing in under --auth."""

from __future__ import annotations

from playwright.sync_api import expect


def test_the_page_opens_to_those_who_sign_in(new_page, serve):
    served = serve(auth="ada:correct-horse")
    page = new_page()
    page.goto(served.address)
    page.wait_for_selector("input[type=password]")
    assert page.locator("#txt2img_prompt").count() == 0
    page.locator("input").first.fill("ada")
    page.fill("input[type=password]", "correct-horse")
    page.get_by_role("button", name="Login").click()
    expect(page.locator("#txt2img_prompt textarea")).to_be_visible()
