"""The pages in real Chromium, with every other host out of reach."""

import functools
import http.server
import os
import re
import shutil
import threading
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import CHAPTERS, FIGURES, PAGES, source
from playwright.sync_api import Error, sync_playwright
from repository import pages_url

pytestmark = pytest.mark.book
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
    barriers = Axe().run(page)
    assert barriers.violations_count == 0, barriers.generate_report()


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
    page = open_page(name, 390)
    assert page.locator(".cell_output img").count() == FIGURES[name], "a figure without a caption"
    # Those in solutions are folded.
    page.evaluate("document.querySelectorAll('.toggle-button').forEach(button => button.click())")
    figures = page.locator("figure img")
    assert figures.count() == page.locator("figure figcaption").count() == FIGURES[name]
    for i in range(figures.count()):
        figure = figures.nth(i)
        figure.scroll_into_view_if_needed()
        assert figure.get_attribute("alt"), "a figure without alternative text"
        assert figure.get_attribute("src").endswith(".svg"), "vector graphics are sharp everywhere"
        width, height = int(figure.get_attribute("width")), int(figure.get_attribute("height"))
        assert figure.get_attribute("loading") == "lazy"
        # A lazy image has no size of its own until it has come; a broken one never gets it.
        natural_width, natural_height = figure.evaluate(
            "async image => { image.loading = 'eager'; await image.decode();"
            " return [image.naturalWidth, image.naturalHeight] }"
        )
        assert natural_width > 100
        ratio = natural_width / natural_height
        assert abs(width / height / ratio - 1) < 0.02, "a size that is not the image's own"
        box = figure.bounding_box()
        assert box["width"] < 390
        assert abs(box["width"] / box["height"] / ratio - 1) < 0.02, "empty space around it"


@pytest.mark.parametrize("name", [name for name in PAGES if "$$" in source(name)])
def test_formulas_are_rendered_without_a_network(open_page, name):
    page = open_page(name)
    formulas = page.locator(".math")
    page.wait_for_selector("mjx-container")
    assert formulas.count() > 0
    assert page.locator("mjx-container").count() >= formulas.count()
    assert page.locator("mjx-merror").count() == 0


def test_search_finds_a_chapter(open_page):
    page = open_page("index")
    page.locator("button.search-button:visible, button.search-button__button:visible").first.click()
    page.locator("input[type=search]:visible").fill("softmax")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a[href^='trainer.html']").count() > 0
    assert page.problems == []


def test_the_chapter_on_search_is_no_page_of_search_results(open_page):
    page = open_page("search")
    assert page.locator("h1:visible").inner_text().strip("#").strip().endswith("a better network")
    assert page.locator("#search-results").count() == 0
    assert page.locator("nav a.reference.internal:visible", has_text="better network").count() > 0


def test_the_book_can_be_read_as_files_search_included(browser, html):
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("file:", "data:", "blob:")) or problems.append(request.url)
        ),
    )
    page.goto((html / "trainer.html").as_uri(), wait_until="networkidle")
    assert page.locator("mjx-container").count() > 0
    assert problems == []
    page.locator("button.search-button:visible, button.search-button__button:visible").first.click()
    page.locator("input[type=search]:visible").fill("softmax")
    page.keyboard.press("Enter")
    # A browser keeps files from reading each other, so results come without their summaries.
    page.wait_for_selector("#search-results li a")
    assert all("fetch" in problem for problem in problems)
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_a_title_a_description_and_a_card(open_page, name):
    page = open_page(name)

    def meta(selector):
        return page.locator(selector).first.get_attribute("content")

    assert page.title().endswith("Training Image Classifiers")
    assert len(meta("meta[name=description]")) > 20
    assert meta("meta[property='og:image']").endswith(".png")
    assert meta("meta[property='og:title']")
    canonical = page.locator("link[rel=canonical]").get_attribute("href")
    assert canonical.startswith("https://") and canonical.endswith(f"/{name}.html")


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_weighs_less_than_two_megabytes(open_page, html, name):
    images = set(re.findall(r'src="(_images/[^"]+)"', (html / f"{name}.html").read_text()))
    files = [html / f"{name}.html", *(html / image for image in images)]
    assert sum(path.stat().st_size for path in files) < 2_000_000


def test_links_and_anchors_inside_the_book_resolve(html):
    pages = {path.name: path.read_text() for path in html.glob("*.html")}
    broken = []
    for name in [f"{page}.html" for page in PAGES]:
        for link in re.findall(r'<a[^>]*?href="([^"]+)"', pages[name]):
            path, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", path):
                continue
            target = path or name
            has_anchor = not anchor or f'id="{anchor}"' in pages.get(target, "")
            if not (html / target).exists() or not has_anchor:
                broken.append(f"{name}: {link}")
    assert broken == []


def test_the_site_has_a_map_and_a_page_for_wrong_addresses(html):
    addresses = re.findall("<loc>(.*?)</loc>", (html / "sitemap.xml").read_text())
    assert {address.rsplit("/", 1)[1] for address in addresses} == {
        f"{name}.html" for name in PAGES
    }
    page = (html / "404.html").read_text()
    folder = urlsplit(pages_url()).path
    assert f'href="{folder}index.html"' in page, "its links must work at any depth"


# What a reader can click on, each with a number.
LIST_CONTROLS = """() => [...document.querySelectorAll("a[href], button, input, summary")]
    .filter(control => control.checkVisibility({visibilityProperty: true}))
    .filter(control => control.getClientRects().length)
    .map((control, number) => { control.dataset.number = number; return control.outerHTML })"""
# The number of the control in focus, whether it looks otherwise than without, and its markup.
DESCRIBE_FOCUS = """() => {
    const control = document.activeElement;
    if (control === document.body) return [null, true, ""];
    const style = getComputedStyle(control);
    const look = () => [style.outline, style.boxShadow, style.border, style.textDecoration].join();
    const focused = look();
    control.blur();
    const differs = look() !== focused;
    control.focus({focusVisible: true});
    return [control.dataset.number, differs, control.outerHTML];
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["index", "trainer"])
def test_all_that_can_be_clicked_is_reached_by_keyboard_and_shows_it(open_page, name, scheme):
    page = open_page(name, scheme=scheme)
    controls = page.evaluate(LIST_CONTROLS)
    reached, unseen = set(), []
    for _ in range(2 * len(controls)):
        page.keyboard.press("Tab")
        number, differs, markup = page.evaluate(DESCRIBE_FOCUS)
        if number in reached - {None}:
            break
        reached.add(number)
        if not differs:
            unseen.append(markup)
    assert [markup for i, markup in enumerate(controls) if str(i) not in reached] == []
    assert unseen == []
