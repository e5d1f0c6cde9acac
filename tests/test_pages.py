"""The pages in real Chromium, with every other host out of reach."""

import functools
import http.server
import os
import shutil
import threading

import pytest
from conftest import CHAPTERS, FIGURES
from playwright.sync_api import Error, sync_playwright

pytestmark = pytest.mark.book
PAGES = ["index", *CHAPTERS, "references"]
WIDTHS = [390, 1280]
SCHEMES = ["light", "dark"]


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error:
            if found:
                raise
            hint = "no Chromium: apt-get install chromium, or playwright install chromium"
            pytest.fail(hint) if os.environ.get("CI") else pytest.skip(hint)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(html):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=html)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def open_page(browser, address):
    """Return a function that opens a page, and collects what goes wrong on it."""
    contexts = []

    def open_page(name, width=1280, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            device_scale_factor=2,
        )
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(f"error: {error}"))
        page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning")
                and page.problems.append(f"console {message.type}: {message.text}")
            ),
        )
        page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:"))
                or page.problems.append(f"request to another host: {request.url}")
            ),
        )
        page.on(
            "response",
            lambda response: (
                response.ok
                or response.status == 304
                or page.problems.append(f"{response.status}: {response.url}")
            ),
        )
        page.route(lambda url: not url.startswith(address), lambda route: route.abort())
        page.goto(f"{address}/{name}.html", wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_a_problem(open_page, name, width, scheme):
    page = open_page(name, width, scheme)
    assert page.problems == []
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_one_header_and_one_search_box(open_page, name):
    page = open_page(name)
    assert page.locator("h1:visible").count() == 1
    assert page.locator("input[type=search]:visible").count() <= 1
    assert page.locator("header:visible").count() <= 2  # the bar on top, and no stray second one
    page.locator("button.search-button:visible, button.search-button__button:visible").first.click()
    assert page.locator("input[type=search]:visible").count() == 1


@pytest.mark.parametrize("name", CHAPTERS)
def test_figures_are_drawn_sharp_and_described(open_page, html, name):
    page = open_page(name)
    figures = page.locator("figure img")
    assert figures.count() == page.locator("figure figcaption").count() == FIGURES[name]
    for i in range(figures.count()):
        figure = figures.nth(i)
        figure.scroll_into_view_if_needed()
        assert figure.get_attribute("alt"), "a figure without alternative text"
        assert figure.get_attribute("src").endswith(".svg"), "vector graphics are sharp everywhere"
        assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100


@pytest.mark.parametrize("name", ["data", "trainer", "fully_connected", "cnn"])
def test_formulas_are_rendered_without_a_network(open_page, name):
    page = open_page(name)
    formulas = page.locator(".math")
    page.wait_for_selector("mjx-container")
    assert formulas.count() > 0
    assert page.locator("mjx-container").count() >= formulas.count()
    assert page.locator("mjx-merror").count() == 0


def test_search_finds_a_chapter(open_page):
    page = open_page("index")
    page.goto(page.url.replace("index.html", "search.html?q=softmax"))
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a[href^='trainer.html']").count() > 0
    assert page.problems == []
