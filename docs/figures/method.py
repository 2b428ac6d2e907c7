"""Draws the method, `method-light.svg` and `method-dark.svg`: `python docs/figures/method.py`."""

from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 960, 424
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
THEMES = {
    "light": {
        "text": "#1f2328", "soft": "#59636e", "line": "#818b98", "paper": "#ffffff",
        "sink": "#8250df", "retained": "#d4690b", "window": "#0969da", "evicted": "#d1d9e0",
        "matrix": "#1a7f64",
    },
    "dark": {
        "text": "#f0f6fc", "soft": "#9198a1", "line": "#6e7681", "paper": "#0d1117",
        "sink": "#ab7df8", "retained": "#f0883e", "window": "#4493f8", "evicted": "#3d444d",
        "matrix": "#2fbf93",
    },
}  # fmt: skip

CELL, STEP, LEFT, ROW = 23, 29, 28, 176  # of the token row
SINKS, EVICTED, WINDOW = 3, 14, 8  # tokens drawn
RETAINED = {5, 8, 9, 14}  # tokens that left the window and are retained
LAST = SINKS + EVICTED + WINDOW - 1  # token t
RIGHT = LEFT + LAST * STEP + CELL
SOFTMAX = (54, 44)  # top and height of the box
MATRIX = (280, 92)
SUM = (RIGHT + 92, 212)  # the plus sign


def kind(token: int) -> str:
    """Return what happens to a token: sink, retained, evicted or window."""
    if token < SINKS:
        return "sink"
    if token >= SINKS + EVICTED:
        return "window"
    return "retained" if token in RETAINED else "evicted"


def middle(token: int) -> float:
    """Return the horizontal centre of a token's cell."""
    return LEFT + token * STEP + CELL / 2


class Drawing:
    """SVG elements in the colours of one theme."""

    def __init__(self, colors: dict[str, str]):
        self.colors = colors
        self.elements: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, color: str, **style: object) -> None:
        """Add a rounded rectangle; `style` holds further SVG attributes."""
        own = {"rx": 4, "fill": self.colors[color]} | style
        text = " ".join(f'{k.replace("_", "-")}="{v}"' for k, v in own.items())
        self.elements.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" {text}/>')

    def frame(self, x: float, y: float, w: float, h: float, color: str) -> None:
        """Add a box with a tinted ground."""
        edge = self.colors[color]
        self.box(x, y, w, h, color, rx=8, fill_opacity=0.1, stroke=edge, stroke_width=1.5)

    def line(self, points: list[tuple[float, float]], color: str, arrow: bool = True) -> None:
        """Add a line through points, with an arrow head at its end."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        head = f' marker-end="url(#{color})"' if arrow else ""
        self.elements.append(
            f'<path d="{path}" fill="none" stroke="{self.colors[color]}" stroke-width="1.6"{head}/>'
        )

    def text(self, x: float, y: float, content: str, color: str = "text", **style: object) -> None:
        """Add a line of text; `content` may have tspan elements."""
        own = {"font_size": 14, "text_anchor": "middle"} | style
        attributes = " ".join(f'{k.replace("_", "-")}="{v}"' for k, v in own.items())
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" fill="{self.colors[color]}" {attributes}>{content}</text>'
        )

    def brace(self, first: int, last: int, color: str) -> None:
        """Add a bracket under the cells from `first` to `last`."""
        a, b, y = middle(first) - CELL / 2, middle(last) + CELL / 2, ROW + CELL + 7
        self.line([(a, y - 4), (a, y), (b, y), (b, y - 4)], color, arrow=False)

    def svg(self) -> str:
        """Return the whole drawing."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{color}"/></marker>'
            for name, color in self.colors.items()
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="{FONT}" role="img"><title>Sliding window with sinks, retained '
            f"key-value pairs and a matrix memory</title><defs>{heads}</defs>\n"
            + "\n".join(self.elements)
            + "\n</svg>\n"
        )


def formula(*parts: str) -> str:
    """Return a line of text in which parts such as "q_t" are variables with a subscript."""
    spans, below = [], False
    for part in parts:
        name, _, index = part.partition("_")
        style = ' font-style="italic"' if index else ""
        spans.append(f'<tspan dy="{-4 if below else 0}"{style}>{name}</tspan>')
        if index:
            spans.append(f'<tspan dy="4" font-size="70%" font-style="italic">{index}</tspan>')
        below = bool(index)
    return "".join(spans)


def tokens(drawing: Drawing) -> None:
    """Draw the row of tokens, its brackets and labels."""
    for token in range(LAST + 1):
        drawing.box(middle(token) - CELL / 2, ROW, CELL, CELL, kind(token))
    drawing.text(middle(LAST), ROW + 16, "t", "paper", font_weight=700, font_style="italic")
    groups = (
        (0, SINKS - 1, "sink", "sinks", "first S tokens"),
        (SINKS, SINKS + EVICTED - 1, "soft", "tokens that left the window", ""),
        (SINKS + EVICTED, LAST, "window", "sliding window", "last W tokens"),
    )
    for first, last, color, name, detail in groups:
        drawing.brace(first, last, color)
        x = (middle(first) + middle(last)) / 2
        drawing.text(x, ROW + CELL + 26, name, color, font_weight=600)
        drawing.text(x, ROW + CELL + 43, detail, "soft", font_size=12)


def attention(drawing: Drawing) -> None:
    """Draw the softmax attention over sinks, retained pairs and window."""
    top, height = SOFTMAX
    drawing.frame(LEFT, top, RIGHT - LEFT, height, "window")
    drawing.text(
        (LEFT + RIGHT) / 2, top + 27,
        "softmax attention with the base's own weights, over sinks, retained pairs and window",
        font_weight=600,
    )  # fmt: skip
    for token in range(LAST + 1):
        if kind(token) != "evicted":
            drawing.line([(middle(token), ROW - 3), (middle(token), top + height + 3)], kind(token))
    x = (middle(9) + middle(14)) / 2
    drawing.text(x, ROW - 38, "K retained pairs", "retained", font_weight=600)
    drawing.text(x, ROW - 20, "of the highest score", "soft", font_size=12)


def memory(drawing: Drawing) -> None:
    """Draw the matrix memory and what is written to it."""
    top, height = MATRIX
    left, right = middle(SINKS) - CELL / 2, middle(SINKS + EVICTED - 1) + CELL / 2
    drawing.frame(left, top, right - left, height, "matrix")
    n, size = 6, 12
    for i in range(n):
        for j in range(n):
            shade = 0.15 + 0.8 * ((i * 7 + j * 11 + i * j * 5) % 13) / 12
            x, y = left + 12 + j * size, top + 10 + i * size
            drawing.box(x, y, size - 2, size - 2, "matrix", rx=2, fill_opacity=f"{shade:.2f}")
    x = left + 96
    lines = (
        ("matrix memory M", "text", 600, 14),
        ("one D × D matrix per key-value head", "soft", 400, 12),
        ("updated by the gated delta rule, token by token", "soft", 400, 12),
    )
    for number, (content, color, weight, font) in enumerate(lines):
        y = top + 27 + number * 21
        style = {"text_anchor": "start", "font_weight": weight, "font_size": font}
        drawing.text(x, y, content, color, **style)
    a = (left + right) / 2
    drawing.line([(a, ROW + CELL + 36), (a, top - 3)], "matrix")
    drawing.text(a + 10, top - 14, "write k, v", "matrix", text_anchor="start", font_size=12)


def output(drawing: Drawing) -> None:
    """Draw the query's read of the matrix, the sum and the formula."""
    x, y = SUM
    top, height = SOFTMAX
    middle_of_softmax, read = top + height / 2, MATRIX[0] + MATRIX[1] / 2
    drawing.line([(RIGHT, middle_of_softmax), (x, middle_of_softmax), (x, y - 15)], "window")
    right = middle(SINKS + EVICTED - 1) + CELL / 2
    drawing.line([(right, read), (x, read), (x, y + 15)], "matrix")
    drawing.text((right + x) / 2 + 6, read - 8, formula("read with the query ", "q_t"), "matrix",
                 font_size=12)  # fmt: skip
    drawing.text(x + 12, read - 60, formula("× gate ", "g_t"), "matrix", text_anchor="start",
                 font_size=13)  # fmt: skip
    drawing.elements.append(
        f'<circle cx="{x}" cy="{y}" r="13" fill="none" stroke="{drawing.colors["text"]}" '
        'stroke-width="1.6"/>'
    )
    drawing.text(x, y + 6, "+", font_size=18)
    drawing.line([(x + 13, y), (x + 48, y)], "text")
    drawing.text(x + 66, y + 5, formula("y_t"), font_size=17)
    content = formula("y_t", " = softmax attention + ", "g_t", " · read(", "q_t", ", M)")
    drawing.text(WIDTH / 2, HEIGHT - 18, content, font_size=16)
    note = (
        "What token t reads in one layer. The state has the same size after any number of tokens."
    )
    drawing.text(WIDTH / 2, 28, note, "soft")


def draw(theme: str) -> str:
    """Return the figure in the colours of a theme."""
    drawing = Drawing(THEMES[theme])
    for part in (tokens, attention, memory, output):
        part(drawing)
    return drawing.svg()


if __name__ == "__main__":
    for theme in THEMES:
        (FOLDER / f"method-{theme}.svg").write_text(draw(theme), encoding="utf-8")
