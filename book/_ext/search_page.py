"""Make room for the chapter ``search``: Sphinx's page of search results moves to find.html.

Sphinx writes that page to search.html, over a chapter of this name, and takes an entry "search" in
the table of contents for it.
"""

from sphinx.domains.std import StandardDomain

PAGE = "find"


def move(app):
    if app.builder.format != "html":
        return
    handle_page = app.builder.handle_page

    def handle_page_moved(pagename, addctx, templatename="page.html", **options):
        page = PAGE if templatename == "search.html" else pagename
        return handle_page(page, addctx, templatename, **options)

    app.builder.handle_page = handle_page_moved


def point_there(app, pagename, templatename, context, doctree):
    pathto = context["pathto"]
    # The templates call pathto with "search" for the page of search results only.
    context["pathto"] = lambda name, *more: pathto(PAGE if name == "search" else name, *more)


def setup(app):
    virtual = StandardDomain._virtual_doc_names
    StandardDomain._virtual_doc_names = {k: v for k, v in virtual.items() if k != "search"}
    app.connect("builder-inited", move)
    app.connect("html-page-context", point_there)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
