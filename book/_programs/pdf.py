"""Print the built pages with Chromium, in the order of the book, into _build/book.pdf."""

import io

import chromium
from contents import ROOT, pages
from playwright.sync_api import sync_playwright
from pypdf import PdfWriter

HTML = ROOT / "_build" / "html"
MARGINS = {"top": "15mm", "bottom": "15mm", "left": "12mm", "right": "12mm"}


def main():
    book = PdfWriter()
    with sync_playwright() as playwright:
        browser = chromium.launch(playwright)
        page = browser.new_page(color_scheme="light")
        for name in pages():
            page.goto((HTML / f"{name}.html").as_uri(), wait_until="networkidle")
            # Images load when they come into view, which they never do on paper.
            page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
            page.wait_for_function("[...document.images].every(image => image.complete)")
            printed = page.pdf(format="A4", margin=MARGINS, print_background=True)
            book.append(io.BytesIO(printed), outline_item=page.title().split(" — ")[0])
        browser.close()
    book.write(ROOT / "_build" / "book.pdf")
    print(f"{len(book.pages)} pages: {ROOT / '_build' / 'book.pdf'}")


if __name__ == "__main__":
    main()
