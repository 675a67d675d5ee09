"""The pieces of HTML that the page is put together from, and the page around them."""

from collections.abc import Collection
from html import escape
from string import Template


def as_section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def as_figure(content: str, caption: str, kind: str = "chart") -> str:
    content = f'<div class="content">{content}</div>'
    return f'<figure class="{kind}">{content}<figcaption>{escape(caption)}</figcaption></figure>\n'


def as_charts(charts: list[str]) -> str:
    """Charts beside each other, as many as fit."""
    return f'<div class="charts">\n{"".join(charts)}</div>'


def as_table(head: list[str], body: list[list[str]], text_columns: Collection[int], bold: Collection[int] = ()) -> str:
    """A table of numbers, which scrolls inside its box; `text_columns` hold words, the rows `bold` of `body` stand out."""
    side = lambda column: ' class="text"' if column in text_columns else ""  # noqa: E731
    rows = ["".join(f'<th scope="col"{side(column)}>{escape(cell)}</th>' for column, cell in enumerate(head))]
    rows += ["".join(f"<td{side(column)}>{escape(cell)}</td>" for column, cell in enumerate(cells)) for cells in body]
    classes = ["", *(' class="best"' if row in bold else "" for row in range(len(body)))]
    lines = "\n".join(f"<tr{kind}>{row}</tr>" for kind, row in zip(classes, rows, strict=True))
    return f'<div class="scroll"><table class="numbers">\n{lines}\n</table></div>'


def as_facts(facts: dict[str, str]) -> str:
    """Names, and what is to know of each as HTML."""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>\n' for name, value in facts.items())
    return f'<table class="facts">\n{rows}</table>'


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name</title>
<style>
:root { color-scheme: light dark; --ink: #222; --soft: #666; --line: #ddd; --paper: #fff; --box: #f6f6f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --soft: #999; --line: #333; --paper: #151515; --box: #222; }
  svg { filter: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { max-width: 60rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 4rem 0 1rem; font-size: 1.25rem; }
p { max-width: 42rem; margin: 0 0 1em; }
.question { margin-top: .4rem; font-size: 1.1rem; color: var(--soft); }
.key { max-width: 46rem; margin: 2rem 0 .75rem; font-size: 1.4rem; line-height: 1.4; text-wrap: balance; }
.aside, figcaption { font-size: .875rem; line-height: 1.45; color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
.numbers { font-size: .875rem; }
.numbers th, .numbers td { padding: .4rem 1.1rem .4rem 0; text-align: right; border-bottom: 1px solid var(--line); }
.numbers td { white-space: nowrap; }
.numbers td.text:first-child { position: sticky; left: 0; min-width: 7rem; white-space: normal; background: var(--paper); }
.numbers th { font-weight: 500; line-height: 1.3; color: var(--soft); vertical-align: bottom; }
.numbers .text { text-align: left; }
.charts .scroll { margin: 0; }
.charts .numbers th, .charts .numbers td { padding-right: .9rem; }
.numbers .best td { font-weight: 600; }
.facts th, .facts td { padding: .3rem 1.5rem .3rem 0; text-align: left; vertical-align: top; font-size: .925rem; }
.facts th { font-weight: 500; color: var(--soft); white-space: nowrap; }
figure { margin: 2rem 0; }
figcaption { max-width: 42rem; margin-top: .5rem; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif !important; }
.narrow { display: none; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
  gap: 2.5rem 2rem; margin: 2rem 0; }
.charts figure { margin: 0; }
.images { width: 100%; table-layout: fixed; }
.images th { padding: .25rem .75rem .25rem 0; font-size: .875rem; font-weight: 400; line-height: 1.2;
  text-align: left; }
.images th:first-child { width: 6rem; overflow-wrap: anywhere; }
.images thead th { color: var(--soft); vertical-align: bottom; }
.images td { padding: .2rem 1.25rem .2rem 0; font-size: .875rem; color: var(--soft); }
.images img { display: block; width: 100%; height: auto; }
code, pre { font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { padding: 1rem; background: var(--box); overflow-x: auto; }
summary { cursor: pointer; margin-top: 1.5rem; }
@media (max-width: 40rem) { body { padding-top: 1.5rem; } .key { font-size: 1.2rem; }
  .numbers th, .numbers td { padding-right: .7rem; } .wide .broad { display: none; } .wide .narrow { display: block; }
  .images, .images tbody, .images tr, .images th, .images td { display: block; width: 100%; padding-right: 0; }
  .images thead { display: none; } .images th { width: auto !important; padding-top: 1.25rem; font-weight: 600; }
  .images td::before { content: attr(data-title); } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; margin-top: 2rem; }
  figure, tr { break-inside: avoid; } details { display: none; } }
</style>
</head>
<body>
<header>
<h1>$name</h1>
<p class="question">$question</p>
</header>
<main>
$sections
</main>
</body>
</html>
""")
