"""The page: HTML out of what was worked out, one file that refers to no other. What comes from data is escaped."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { --ink: #1f2933; --muted: #6b7785; --line: #e3e8ee; --soft: #f6f8fa; --accent: #0b6e99; --warn: #c2410c; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 3.5rem 0 .4rem; padding-top: 1.2rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; margin: 2.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
p.note, caption, figcaption { color: var(--muted); font-size: .88rem; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; max-width: 54rem; height: auto; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; white-space: nowrap; }
td.text { max-width: 34rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .9rem;
  padding: .9rem 1.1rem; background: var(--soft); border-radius: 6px; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile small { color: var(--muted); font-size: .84rem; font-weight: 400; }
.tile span { color: var(--muted); font-size: .84rem; }
.better { color: #166534; font-weight: 600; } .worse { color: var(--warn); font-weight: 600; }
nav a { margin-right: 1rem; } a { color: var(--accent); }
code { font: .88em ui-monospace, "DejaVu Sans Mono", monospace; }
@media print { h2 { break-before: page; } figure, table { break-inside: avoid; } }
""".strip()


class Html(str):
    """Markup that is safe as it is; any other string is escaped where it is put into a page."""

    __slots__ = ()


def text(value: object) -> Html:
    """As HTML: escaped, unless it is Html already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """Return an element; `class_` is the attribute class."""
    given = "".join(f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{''.join(text(part) for part in content)}</{name}>")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "", texts: int = 1) -> Html:
    """Return a table whose first `texts` columns are words and whose others are numbers, to the right."""
    kinds = ["" if i < texts else "n" for i in range(len(head))]
    header = tag("tr", *(tag("th", name, class_=kind) for name, kind in zip(head, kinds, strict=True)))
    body = [tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    parts = [tag("caption", caption)] if caption else []
    return tag("div", tag("table", *parts, tag("thead", header), tag("tbody", *body)), class_="wide")


def figure(svg: str, says: str) -> Html:
    """Return an SVG document as an image with its caption, which is also what is read out in its place."""
    data = base64.b64encode(svg.encode()).decode()
    image = Html(f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(says)}">')
    return tag("figure", image, tag("figcaption", says))


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Return a list of names and what they are."""
    return tag("dl", *(Html(tag("dt", name) + tag("dd", value)) for name, value in pairs))


def tiles(pairs: Iterable[tuple[str, str]]) -> Html:
    """Return figures in large type, what follows a ± in small, with what they are below."""
    boxes = []
    for name, value in pairs:
        number, plus_minus, deviation = value.partition(" ±")
        large = tag("b", number, tag("small", plus_minus + deviation) if deviation else "")
        boxes.append(tag("div", large, tag("span", name), class_="tile"))
    return tag("div", *boxes, class_="tiles")


def page(title: str, *content: object) -> str:
    """Return the whole document."""
    head = Html(
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = tag("body", tag("main", *content))
    return f'<!doctype html>\n<html lang="en">{tag("head", head)}{body}</html>\n'
