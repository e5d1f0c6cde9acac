"""The pages in real Chromium, with every other host out of reach."""

import functools
import http.server
import os
import re
import threading
from urllib.parse import unquote, urlsplit

import chromium
import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from conftest import CHAPTERS, FIGURES, PAGES, source
from playwright.sync_api import Error, sync_playwright
from repository import pages_url

pytestmark = pytest.mark.book
# Two of the four for each page: what is wrong at a width or in a colour shows in one of them.
# By turns, so that what all pages share is seen in all four.
VIEWS = [[(390, "dark"), (1280, "light")], [(390, "light"), (1280, "dark")]]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        try:
            browser = chromium.launch(playwright)
        except Error:
            if chromium.installed():
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


def watch(page, own):
    """Collect in `page.problems` what goes wrong; block requests but those to `own` addresses."""
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
            request.url.startswith((own, "data:", "blob:"))
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
    page.route(lambda url: not url.startswith(own), lambda route: route.abort())


@pytest.fixture(
    scope="module",
    params=[(name, *view) for number, name in enumerate(PAGES) for view in VIEWS[number % 2]],
    ids=lambda param: "-".join(map(str, param)),
)
def view(request, browser, address):
    """A page that is opened once for all tests of it: the page, its name, width and scheme."""
    name, width, scheme = request.param
    viewport = {"width": width, "height": 900}
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page = context.new_page()
    watch(page, address)
    page.goto(f"{address}/{name}.html", wait_until="networkidle")
    yield page, name, width, scheme
    context.close()


def test_a_page_loads_without_a_problem(view):
    page, _, width, scheme = view
    assert page.problems == []
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    barriers = Axe().run(page)
    assert barriers.violations_count == 0, barriers.generate_report()


def test_formulas_are_rendered_without_a_network(view):
    page, name, *_ = view
    formulas = page.locator(".math").count()
    assert formulas > 0 or "$$" not in source(name)
    if formulas:
        page.wait_for_selector("mjx-container")
    assert page.locator("mjx-container").count() >= formulas
    assert page.locator("mjx-merror").count() == 0


def test_figures_are_drawn_sharp_and_described(view):
    page, name, width, _ = view
    expected = FIGURES.get(name, 0)
    assert page.locator(".cell_output img").count() == expected, "a figure without a caption"
    # Those in solutions are folded.
    page.evaluate("document.querySelectorAll('.toggle-button').forEach(button => button.click())")
    figures = page.locator("figure img")
    assert figures.count() == page.locator("figure figcaption").count() == expected
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        assert figure.get_attribute("alt"), "a figure without alternative text"
        assert figure.get_attribute("src").endswith(".svg"), "vector graphics are sharp everywhere"
        own_width, height = int(figure.get_attribute("width")), int(figure.get_attribute("height"))
        assert figure.get_attribute("loading") == "lazy"
        # A lazy image has no size of its own until it has come; a broken one never gets it.
        natural_width, natural_height = figure.evaluate(
            "async image => { image.loading = 'eager'; await image.decode();"
            " return [image.naturalWidth, image.naturalHeight] }"
        )
        assert natural_width > 100
        ratio = natural_width / natural_height
        assert abs(own_width / height / ratio - 1) < 0.02, "a size that is not the image's own"
        box = figure.bounding_box()
        assert box["width"] < width
        assert abs(box["width"] / box["height"] / ratio - 1) < 0.02, "empty space around it"


def test_a_page_has_one_header_and_one_search_box(view):
    page, *_ = view
    assert page.locator("h1:visible").count() == 1
    assert page.locator("input[type=search]:visible").count() <= 1
    assert page.locator("header:visible").count() <= 2  # the bar on top, and no stray second one
    open_search(page)
    assert page.locator("input[type=search]:visible").count() == 1


def open_search(page):
    page.locator("button.search-button:visible, button.search-button__button:visible").first.click()


def search(page, word):
    open_search(page)
    page.locator("input[type=search]:visible").fill(word)
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")


@pytest.fixture
def open_page(browser):
    """Return a function that opens an address."""
    contexts = []

    def open_page(address, scheme="light"):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        watch(page, address.rpartition("/")[0])
        page.goto(address, wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_search_finds_a_chapter(open_page, address):
    page = open_page(f"{address}/index.html")
    search(page, "softmax")
    assert page.locator("#search-results li a[href^='trainer.html']").count() > 0
    assert page.problems == []


def test_the_book_can_be_read_as_files_search_included(open_page, html):
    page = open_page((html / "trainer.html").as_uri())
    assert page.locator("mjx-container").count() > 0
    assert page.problems == []
    search(page, "softmax")
    # A browser keeps files from reading each other, so results come without their summaries.
    assert all("fetch" in problem or "ERR_FAILED" in problem for problem in page.problems)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_a_title_a_description_and_a_card(html, name):
    page = BeautifulSoup((html / f"{name}.html").read_text(), "html.parser")

    def meta(**attributes):
        return page.find("meta", attributes)["content"]

    assert page.title.text.endswith("Training Image Classifiers")
    assert len(meta(name="description")) > 20
    assert meta(property="og:image").endswith(".png")
    assert meta(property="og:title")
    canonical = page.find("link", rel="canonical")["href"]
    assert canonical.startswith("https://") and canonical.endswith(f"/{name}.html")


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_weighs_less_than_two_megabytes(html, name):
    images = set(re.findall(r'src="(_images/[^"]+)"', (html / f"{name}.html").read_text()))
    files = [html / f"{name}.html", *(html / image for image in images)]
    assert sum(path.stat().st_size for path in files) < 2_000_000


def test_links_and_anchors_inside_the_book_resolve(html):
    pages = {str(path.relative_to(html)): path.read_text() for path in html.rglob("*.html")}
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


@pytest.mark.parametrize(("name", "scheme"), [("index", "light"), ("trainer", "dark")])
def test_all_that_can_be_clicked_is_reached_by_keyboard_and_shows_it(
    open_page, address, name, scheme
):
    page = open_page(f"{address}/{name}.html", scheme)
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
