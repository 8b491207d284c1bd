"""Reading what a class's docstring says of its attributes, so that a help text stands in one
place.
"""

from __future__ import annotations

import inspect
import re


def attributes(documented: type) -> dict[str, str]:
    """Return the text that a class's docstring gives to each attribute, on one line.

    Args:
        documented: a class whose docstring has a section `Attributes:` of lines `name: text`,
            perhaps of several names.

    Examples:

    >>> class Point:
    ...     '''A point.
    ...
    ...     Attributes:
    ...         x, y: where it is,
    ...             in pixels.
    ...     '''
    >>> attributes(Point)["y"]
    'where it is, in pixels.'
    """
    text = inspect.getdoc(documented) or ""
    section = re.search(r"^Attributes:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in (section.group(1) if section else "").splitlines():
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry.group(1).split(", ")
            found.update(dict.fromkeys(names, entry.group(2)))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found
