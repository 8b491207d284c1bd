"""A hook of mkdocs: formulas become MathML when the site is built, so that a page shows them
without a network or a script.
"""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_page_content(content: str, **_) -> str:
    """Replace what pymdownx.arithmatex marks by MathML, which browsers draw by themselves."""

    def typeset(found: re.Match) -> str:
        kind, bracket, formula = found.groups()
        display = "block" if bracket == "[" else "inline"
        return (
            f'<{kind} class="formula">{convert(html.unescape(formula), display=display)}</{kind}>'
        )

    return FORMULA.sub(typeset, content)
