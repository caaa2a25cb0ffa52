"""A small SVG drawing: boxes, arrows and labels with subscripts, and nothing that needs a browser's scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

Point = tuple[float, float]

INK, FAINT, LINE = "#1f2933", "#66717d", "#52606d"
FILLS = {
    "frozen": ("#dbe7f3", "#7b9cbd"),
    "trainable": ("#ffd9b0", "#e07a1f"),
    "operation": ("#ffffff", "#9aa5b1"),
    "attention": ("#e4f3e6", "#5f9e6e"),
    "x": ("#eef1f5", "#7b8794"),
    "l": ("#fdeedd", "#c9853f"),
    "c": ("#efeafb", "#8b78c6"),
    "unused": ("#f7f7f7", "#c5ccd3"),
}
"""Kind of a box → fill and border."""


class Drawing:
    """Elements in the order in which they are drawn.

    Args:
        width, height: in pixels.
        title, description: read aloud by screen readers, and shown when pointed at.
    """

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self.width, self.height = width, height
        self._head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
        self._lines: list[str] = []
        self._boxes: list[str] = []

    def panel(self, x: float, y: float, width: float, height: float, label: str = "") -> None:
        """A background that groups elements."""
        self._lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="14" fill="#fafbfc" stroke="#d5dbe1"/>'
        )
        if label:
            self.text((x + 16, y + 26), label, size=15, bold=True, anchor="start")

    def box(
        self,
        centre: Point,
        width: float,
        label: str,
        kind: str,
        *,
        height: float = 34,
        parameters: Sequence[str] = (),
        dashed: bool = False,
        size: float = 13,
    ) -> None:
        """A rounded box; lines of its label are separated by a line feed.

        Args:
            kind: of :data:`FILLS`.
            parameters: names of the sub-modules (or parameters) that it stands for, as the network has them.
        """
        x, y = centre[0] - width / 2, centre[1] - height / 2
        fill, stroke = FILLS[kind]
        data = f' data-parameters="{escape(" ".join(parameters))}"' if parameters else ""
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        bold = ' stroke-width="1.8"' if kind == "trainable" else ""
        self._boxes.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" '
            f'fill="{fill}" stroke="{stroke}"{bold}{dash}{data}/>'
        )
        lines = label.split("\n")
        first = centre[1] - (len(lines) - 1) * size * 0.62
        for i, line in enumerate(lines):
            self.text((centre[0], first + i * size * 1.24 + size * 0.35), line, size=size, above=True)

    def circle(self, centre: Point, symbol: str) -> None:
        """A circled + or ×."""
        self._boxes.append(f'<circle cx="{centre[0]:g}" cy="{centre[1]:g}" r="10" fill="#fff" stroke="{LINE}"/>')
        arms = [(0, -5, 0, 5), (-5, 0, 5, 0)] if symbol == "+" else [(-3.5, -3.5, 3.5, 3.5), (-3.5, 3.5, 3.5, -3.5)]
        for x1, y1, x2, y2 in arms:
            self._boxes.append(
                f'<line x1="{centre[0] + x1:g}" y1="{centre[1] + y1:g}" x2="{centre[0] + x2:g}" '
                f'y2="{centre[1] + y2:g}" stroke="{LINE}" stroke-width="1.5"/>'
            )

    def arrow(self, points: Sequence[Point], *, name: str = "", colour: str = LINE, head: bool = True) -> None:
        """A line through points, with an arrow head at its end; corners are rounded.

        Args:
            name: becomes its class, for whoever looks for it.
        """
        path = [f"M{points[0][0]:g} {points[0][1]:g}"]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            start, end = _towards(corner, before), _towards(corner, after)
            path.append(f"L{start[0]:g} {start[1]:g}Q{corner[0]:g} {corner[1]:g} {end[0]:g} {end[1]:g}")
        path.append(f"L{points[-1][0]:g} {points[-1][1]:g}")
        marker = f' marker-end="url(#{_marker(colour)})"' if head else ""
        named = f' class="{name}"' if name else ""
        self._lines.append(
            f'<path{named} d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.6"{marker}/>'
        )

    def text(
        self,
        at: Point,
        text: str,
        *,
        size: float = 13,
        bold: bool = False,
        anchor: str = "middle",
        colour: str = INK,
        above: bool = False,
    ) -> None:
        """A line of text; ``P_{q}`` has a subscript. ``above``: over the boxes."""
        weight = ' font-weight="600"' if bold else ""
        element = (
            f'<text x="{at[0]:g}" y="{at[1]:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}"{weight}>'
            f"{_subscripts(text, size)}</text>"
        )
        (self._boxes if above else self._lines).append(element)

    def render(self) -> str:
        """The SVG file."""
        markers = "".join(
            f'<marker id="{_marker(colour)}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
            for colour in (LINE, FILLS["trainable"][1])
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img" '
                "font-family=\"Inter, Helvetica, Arial, 'DejaVu Sans', sans-serif\">",
                self._head,
                f"<defs>{markers}</defs>",
                f'<rect width="{self.width}" height="{self.height}" fill="#fff"/>',
                *self._lines,
                *self._boxes,
                "</svg>",
                "",
            ]
        )


def _marker(colour: str) -> str:
    return "head" + colour.strip("#")


def _towards(corner: Point, other: Point, radius: float = 8) -> Point:
    """The point at most ``radius`` from the corner in the direction of the other point."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = max((dx * dx + dy * dy) ** 0.5, 1e-9)
    near = min(radius, length / 2)
    return corner[0] + dx / length * near, corner[1] + dy / length * near


def _subscripts(text: str, size: float) -> str:
    """``W_{q}`` as tspans."""
    lower, small = size * 0.25, size * 0.72
    return re.sub(
        r"_\{([^}]*)\}",
        rf'<tspan dy="{lower:.1f}" font-size="{small:.1f}">\1</tspan><tspan dy="{-lower:.1f}">&#8203;</tspan>',
        escape(text),
    )
