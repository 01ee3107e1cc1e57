"""The report of a run: one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..results import Number

__all__ = ["Frame", "render", "write_page"]

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1b2733; background: #f5f7f9;
       margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.75rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; }
.lead { color: #5b6876; margin: 0 0 1.6rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .9rem; }
.card, figure, table, pre { background: #fff; border: 1px solid #dfe5ea; border-radius: 10px; }
.card { padding: .9rem 1.1rem; }
.card b { display: block; font-size: 1.3rem; font-weight: 650; }
.card span { color: #5b6876; font-size: .88rem; }
table { border-collapse: separate; border-spacing: 0; width: 100%; overflow: hidden; }
td, th { text-align: left; padding: .45rem .9rem; border-top: 1px solid #eceff2; font-size: .93rem; }
tr:first-child > * { border-top: 0; }
th { font-weight: 600; background: #fafbfc; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.r { color: #5b6876; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; }
.grid .wide { grid-column: 1 / -1; }
figure { margin: 0; padding: .8rem; }
figure img { width: 100%; height: auto; display: block; }
figcaption { color: #5b6876; font-size: .86rem; padding: .5rem .2rem 0; }
pre { padding: 1rem; overflow-x: auto; font-size: .82rem; }
.warning { background: #fff4e5; border: 1px solid #f0c68a; border-radius: 10px; padding: .7rem 1rem;
           margin: .5rem 0; }
ol { padding-left: 1.3rem; font-size: .92rem; }
code { font-size: .92em; }
"""


@dataclass(frozen=True)
class Frame:
    """What every report has beside its own.

    Attributes:
        config: text of the resolved config.
        provenance: versions, platform, device and threads, as recorded.
        numbers: every number.
        warnings: sentences shown first.
    """

    config: str
    provenance: Mapping[str, Any]
    numbers: list[Number]
    warnings: list[str]

    @property
    def version(self) -> str:
        """Of feynkac, when the run started."""
        return str(self.provenance.get("versions", {}).get("feynkac", ""))

    @property
    def shown(self) -> dict[str, Number]:
        """Numbers by key."""
        return {n.key: n for n in self.numbers}


def write_page(
    folder: Path,
    frame: Frame,
    *,
    pictures: Mapping[str, tuple[bytes, str, bool]],
    title: str,
    lead: str,
    cards: Sequence[tuple[str, str]],
    citations: Sequence[str],
) -> list[str]:
    """Write the pictures and ``report.html`` into ``folder``.

    Args:
        folder: of the run.
        frame: what every report has.
        pictures, title, lead, cards, citations: as for :func:`render`.

    Returns:
        Names of the pictures.
    """
    for name, (picture, _, _) in pictures.items():
        (folder / f"{name}.png").write_bytes(picture)
    known = frame.provenance
    machine = {k: str(known[k]) for k in ("platform", "device", "torch_threads") if k in known}
    page = render(
        title=title,
        lead=lead,
        cards=cards,
        numbers=frame.numbers,
        pictures=pictures,
        warnings=frame.warnings,
        versions={**known.get("versions", {}), **machine},
        config=frame.config,
        citations=citations,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return [f"{name}.png" for name in pictures]


def render(
    *,
    title: str,
    lead: str,
    cards: Sequence[tuple[str, str]],
    numbers: Sequence[Number],
    pictures: Mapping[str, tuple[bytes, str, bool]],
    warnings: Sequence[str],
    versions: Mapping[str, str],
    config: str,
    citations: Sequence[str],
) -> str:
    """The page.

    Args:
        title, lead: heading, and the sentence below it.
        cards: value and caption of the numbers shown largest.
        numbers: every number, for the table.
        pictures: name -> (PNG, caption, whether it takes the whole width).
        warnings: sentences shown first.
        versions: what the run used.
        config: text of the resolved config.
        citations: references, one line each.
    """
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(lead)}</p>',
        *(f'<p class="warning">{escape(text)}</p>' for text in warnings),
        '<div class="cards">' + "".join(_card(*card) for card in cards) + "</div>",
        "<h2>Pictures</h2>",
        '<div class="grid">' + "".join(_picture(n, *p) for n, p in pictures.items()) + "</div>",
        "<h2>Every number</h2>",
        _table(numbers),
        "<h2>Config</h2>",
        f"<pre>{escape(config)}</pre>",
        "<h2>Versions</h2>",
        "<table>" + "".join(_row(k, v) for k, v in versions.items()) + "</table>",
        "<h2>How to cite</h2>",
        "<ol>" + "".join(f"<li>{escape(c)}</li>" for c in citations) + "</ol>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _card(value: str, caption: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(caption)}</span></div>'


def _picture(name: str, png: bytes, caption: str, wide: bool) -> str:
    data = base64.b64encode(png).decode()
    css = ' class="wide"' if wide else ""
    return (
        f'<figure{css}><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _table(numbers: Sequence[Number]) -> str:
    rows = "".join(
        f'<tr><td>{escape(n.label)}</td><td class="n">{escape(n.text)}</td><td class="r">{escape(n.remark)}</td></tr>'
        for n in numbers
    )
    return f"<table><tr><th>quantity</th><th>value ± standard error</th><th></th></tr>{rows}</table>"


def _row(key: str, value: str) -> str:
    return f"<tr><td>{escape(key)}</td><td>{escape(str(value))}</td></tr>"
