"""The page, in a browser."""

import shutil

import pytest

QUERY = "what is panda?"
PASSAGES = ["hi", "panda " * 100, "<b>The giant panda</b> is a bear species."]


def test_the_page_ranks_and_tells_tokens_and_truncation(server, small):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    expected = small.score([(QUERY, passage) for passage in PASSAGES], normalize=True)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page()
        requested, errors = [], []
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        page.fill("#passages", "\n".join(PASSAGES))
        page.click("button")
        page.wait_for_selector("#message:has-text('the bearer token is missing or wrong')")
        page.click("summary")
        page.fill("#token", server.token)
        page.click("button")
        page.wait_for_selector("#results li")
        items = page.query_selector_all("#results li")
        texts = [item.inner_text() for item in items]
        widths = [item.eval_on_selector(".bar > div", "bar => bar.style.width") for item in items]
        opened.close()
    order = sorted(range(3), key=lambda index: -expected.scores[index])
    for text, width, index in zip(texts, widths, order, strict=True):
        cut = ", truncated: the end was not read" if expected.truncated[index] else ""
        shown = f"score {expected.scores[index]:.4f}, {expected.tokens[index]} tokens{cut}"
        assert [line.strip() for line in text.splitlines() if line.strip()] == [PASSAGES[index].strip(), shown]
        assert float(width.rstrip("%")) == pytest.approx(100 * expected.scores[index], abs=0.01)
    assert errors == []
    assert {url.removeprefix(server.url) for url in requested} <= {"/", "/rank", "/favicon.ico"}
