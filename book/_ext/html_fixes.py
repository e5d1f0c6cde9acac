"""What the pages lack for readers with slow lines and with screen readers.

Every image gets its size, so that nothing jumps, and is loaded when it comes into view. Scripts
wait until the page is there. Entries of the bibliography get the role of list items, since ARIA has
withdrawn theirs. The map of the site is whole after a build of a few pages, too.
"""

import re
from pathlib import Path

IMAGE = re.compile(r'<img (?![^>]*\bloading=)([^>]*\bsrc="([^"]+\.svg)"[^>]*)>')
SIZE = re.compile(r'<svg[^>]*?\bwidth="([\d.]+)pt"[^>]*?\bheight="([\d.]+)pt"')


def mend(app, pagename, templatename, context, doctree):
    def sized(match):
        # Until all pages are written, the images are only where Sphinx found them.
        name = Path(match[2]).name
        source = next((path for path, (_, new) in app.env.images.items() if new == name), None)
        size = source and SIZE.search((Path(app.srcdir) / source).read_text()[:3000])
        points = [float(length) for length in size.groups()] if size else []
        pixels = [round(4 / 3 * length) for length in points]
        attributes = ['loading="lazy"']
        if pixels:
            attributes += [f'width="{pixels[0]}"', f'height="{pixels[1]}"']
        return f"<img {' '.join(attributes)} {match[1]}>"

    for script in context["script_files"]:
        # Text between the scripts uses the options at once; MathJax has its own way of waiting.
        named = script.filename and "documentation_options" not in script.filename
        if not named or "async" in script.attributes:
            continue
        if templatename == "search.html":  # whose own scripts, further down, use the others at once
            script.attributes.pop("defer", None)
        else:
            script.attributes["defer"] = "defer"
    if body := context.get("body"):
        context["body"] = IMAGE.sub(sized, body).replace('"doc-biblioentry"', '"listitem"')


def map_every_page(app, exception):
    """List every page in the map of the site, not only those that this build has written."""
    if app.builder.format == "html":
        links = app.sitemap_links
        while not links.empty():
            links.get()
        for name in sorted(app.env.found_docs):
            links.put((f"{name}.html", None))


def setup(app):
    app.connect("html-page-context", mend)
    app.connect("build-finished", map_every_page, priority=400)  # before sphinx-sitemap's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
