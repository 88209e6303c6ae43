"""Charts as plain SVG, written by hand: lines and points over a numeric axis, a legend beside.

Readable on white and on black. Knows nothing of engines but in `draw`, which reads the columns of
engine_table.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from engine_table import Column, row

WIDTH, HEIGHT = 860, 400
LEFT, TOP, RIGHT, BOTTOM = 64, 44, 330, 56  # margins
COLOURS = ("#3b82c4", "#d9822b", "#3f9a6a", "#b45aa0", "#8a7a3c", "#c4504a", "#6b77b8")
GREY = "#7b7b7b"  # as far from white as from black
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    name: str
    points: Points
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Points (x, y), y > 0 on a logarithmic axis; x too if `log_x`. `ticks`: x and its label."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    ticks: Sequence[tuple[float, str]]
    log_x: bool = False

    def svg(self) -> str:
        size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        font = f'font-family="system-ui, sans-serif" font-size="13" fill="{GREY}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">'
        named = f"<title>{escape(self.title)}</title>"
        parts = [head, named, *self._axes(), *self._curves(), *self._legend(), "</svg>"]
        return "\n".join(parts) + "\n"

    def _axes(self) -> Iterator[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        yield _text(LEFT, 24, self.title, bold=True)
        for value in self._levels():
            y = self._y(value)
            yield f'<path d="M{LEFT} {y:.1f}H{right}" stroke="{GREY}" stroke-opacity="0.25"/>'
            yield _text(LEFT - 8, y + 4, f"{value:g}", anchor="end")
        for value, label in self.ticks:
            yield _text(self._x(value), bottom + 20, label, anchor="middle")
        yield f'<path d="M{LEFT} {TOP}V{bottom}H{right}" stroke="{GREY}" fill="none"/>'
        yield _text((LEFT + right) / 2, HEIGHT - 12, self.x_label, anchor="middle")
        yield _text(18, (TOP + bottom) / 2, self.y_label, anchor="middle", turned=True)

    def _curves(self) -> Iterator[str]:
        for line in self.series:
            places = [(self._x(x), self._y(y)) for x, y in sorted(line.points)]
            if len(places) > 1:
                path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
                yield f'<path d="M{path}" {_stroke(line)}/>'
            for x, y in places:
                yield _dot(x, y, line)

    def _legend(self) -> Iterator[str]:
        x = WIDTH - RIGHT + 20
        for index, line in enumerate(self.series):
            y = TOP + 10 + 22 * index
            yield f'<path d="M{x} {y}h24" {_stroke(line)}/>'
            yield _dot(x + 12, y, line)
            yield _text(x + 32, y + 4, line.name)

    def _levels(self) -> list[float]:
        """1, 2, 5, 10, … around all that is shown."""
        values = [y for line in self.series for _, y in line.points]
        scale = [m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5)]
        low = max((s for s in scale if s <= min(values)), default=scale[0])
        high = min((s for s in scale if s >= max(values)), default=scale[-1])
        return [s for s in scale if low <= s <= high]

    def _x(self, value: float) -> float:
        low, high = (self._along(tick) for tick in (self.ticks[0][0], self.ticks[-1][0]))
        share = (self._along(value) - low) / (high - low) if high > low else 0.5
        return LEFT + 16 + share * (WIDTH - LEFT - RIGHT - 32)

    def _along(self, value: float) -> float:
        return math.log(value) if self.log_x else value

    def _y(self, value: float) -> float:
        levels = self._levels()
        low, high = math.log(levels[0]), math.log(levels[-1])
        share = (math.log(value) - low) / (high - low) if high > low else 0.5
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _dot(x: float, y: float, line: Series) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{line.colour}"/>'


def _stroke(line: Series) -> str:
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    return f'stroke="{line.colour}" stroke-width="2" fill="none"{dashes}'


def _text(
    x: float, y: float, words: str, anchor: str = "start", bold: bool = False, turned: bool = False
) -> str:
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if turned else ""
    weight = ' font-weight="600" font-size="15"' if bold else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place}{weight}{turn}>{escape(words)}</text>"


def draw(found: Mapping[str, Column], folder: Path) -> list[Path]:
    """Write the charts that `found` has figures for: over the batch, over the load."""
    charts = {"engine-batch.svg": over_batch(found), "engine-load.svg": over_load(found)}
    written = []
    for name, chart in charts.items():
        if chart.series:
            (folder / name).write_text(chart.svg(), "utf-8")
            written.append(folder / name)
    return written


def over_batch(found: Mapping[str, Column]) -> Chart:
    lines = {title: _batches(column) for title, column in found.items()}
    series = [
        Series(title, points, COLOURS[index % len(COLOURS)])
        for index, (title, points) in enumerate(lines.items())
        if points
    ]
    sizes = sorted({x for line in series for x, _ in line.points})
    return Chart(
        title="A frame of 80 ms of sound, for every stream of a batch",
        x_label="streams at once",
        y_label="ms per frame (logarithmic)",
        series=series,
        ticks=[(size, f"{size:g}") for size in sizes],
        log_x=True,
    )


def _batches(column: Column) -> list[tuple[float, float]]:
    """(streams, ms): one stream from its own stage, which peers have alone."""
    rows = column.get("batch", {"rows": []})["rows"]
    points = {line["streams"]: line.get("ms_per_step", line.get("ms_per_frame")) for line in rows}
    if "single" in column:
        points.setdefault(1, row(column["single"], mode="icl")["ms_per_frame"])
    return list(points.items())


def over_load(found: Mapping[str, Column]) -> Chart:
    """First audio: median and p95 of ours, and of everyone alone, at 0."""
    series = []
    for index, (title, column) in enumerate(found.items()):
        colour = COLOURS[index % len(COLOURS)]
        alone = [(0.0, row(column["single"], mode="icl")["first_ms"])] if "single" in column else []
        rows = column["poisson"]["rows"] if "poisson" in column else []
        if rows:
            points = [(line["rate"], line["first_p95_ms"]) for line in rows]
            series.append(Series(f"{title}, p95", points, colour))
        points = alone + [(line["rate"], line["first_p50_ms"]) for line in rows]
        if points:
            name = f"{title}, median" if rows else title
            series.append(Series(name, points, colour, dashed=bool(rows)))
    rates = sorted({x for line in series for x, _ in line.points})
    return Chart(
        title="First audio of a known voice under load",
        x_label="requests a second, of 5 s of speech each",
        y_label="ms (logarithmic)",
        series=series,
        ticks=[(rate, f"{rate:g}" if rate else "alone") for rate in rates],
    )
