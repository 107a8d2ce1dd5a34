"""SVG plots of a run, without packages."""

import math
from html import escape

COLOURS = {
    "floor": "#6b7280",
    "edge-proxy": "#2563eb",
    "nginx": "#16a34a",
    "axum": "#d97706",
    "python": "#dc2626",
    "p50": "#60a5fa",
    "p99": "#2563eb",
    "p99.9": "#1e3a8a",
}
SPARE = ("#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 78, 20, 56, 62
# Labels on the x axis: more would overlap.
LABELS_MAX = 20


def colour(name, number):
    return next((value for key, value in COLOURS.items() if name.endswith(key)), SPARE[number % len(SPARE)])


def short(number):
    """1500 -> 1.5k, for axes."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:g}{unit}"
    return f"{number:.3g}"


def frame(title, x_label, y_label, body, width=WIDTH, height=HEIGHT):
    """The frame, with a background, so that it is readable on light and dark pages."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="{width / 2}" y="20" text-anchor="middle" font-size="15" font-weight="600">{escape(title)}</text>'
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(16 {height / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        f"{body}</svg>\n"
    )


def legend(names, left=LEFT):
    parts, at = [], left
    for number, name in enumerate(names):
        parts.append(f'<rect x="{at}" y="30" width="12" height="12" fill="{colour(name, number)}"/>')
        parts.append(f'<text x="{at + 17}" y="40">{escape(name)}</text>')
        at += 34 + 7 * len(name)
    return "".join(parts)


def log_ticks(low, high):
    ticks = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    if len(ticks) < 4:
        ticks = sorted(tick * step for tick in ticks for step in (1, 2, 5))
    return [tick for tick in ticks if low <= tick <= high]


def linear_ticks(high):
    step = 10 ** math.floor(math.log10(high))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if high / (step * part) <= 8)
    return [step * number for number in range(int(high / step) + 1)]


def lines(title, x_label, y_label, series, log_x=True, log_y=False):
    """One line for each name: {name: [(x, y), ...]}."""
    points = [point for line in series.values() for point in line]
    if not points:
        return None
    # The position of x = 0 on a logarithmic axis: one step left of the smallest value.
    positive = sorted({x for x, _ in points if x > 0}) or [1]
    zero = positive[0] / 4

    def on_x(x):
        return math.log10(x if x > 0 else zero) if log_x else x

    low_x, high_x = min(on_x(x) for x, _ in points), max(on_x(x) for x, _ in points)
    high_y = max(y for _, y in points) * (1.5 if log_y else 1.1)
    low_y = min(y for _, y in points if y > 0) / 1.5 if log_y else 0.0

    def place_x(x):
        return LEFT + (on_x(x) - low_x) / ((high_x - low_x) or 1) * (WIDTH - LEFT - RIGHT)

    def place_y(y):
        share = math.log10(max(y, low_y) / low_y) / math.log10(high_y / low_y) if log_y else y / high_y
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    body = []
    for tick in log_ticks(low_y, high_y) if log_y else linear_ticks(high_y):
        y = place_y(tick)
        body.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        body.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    labels = sorted({x for x, _ in points})
    for x in labels[:: math.ceil(len(labels) / LABELS_MAX)]:
        body.append(f'<text x="{place_x(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{short(x)}</text>')
    for number, (name, line) in enumerate(series.items()):
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in sorted(line))
        stroke = colour(name, number)
        dash = ' stroke-dasharray="5 4"' if name.startswith("floor") else ""
        body.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="2"{dash}/>')
        for x, y in line if len(line) <= LABELS_MAX else ():
            body.append(f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3" fill="{stroke}"/>')
    return frame(title, x_label, y_label, "".join(body) + legend(series))


def bars(title, x_label, groups):
    """Horizontal bars on a logarithmic axis: {group: {name: value}}; each bar is labelled with its value."""
    values = [value for group in groups.values() for value in group.values()]
    if not values:
        return None
    low, high = min(values) / 1.6, max(values) * 2.2
    left, row, gap = 190, 17, 14
    height = TOP + sum(len(group) * row + gap for group in groups.values()) + 50

    def place(value):
        return left + math.log10(value / low) / math.log10(high / low) * (WIDTH - left - RIGHT)

    body, y = [], TOP
    for tick in log_ticks(low, high):
        x = place(tick)
        body.append(f'<path d="M{x:.1f} {TOP - 6}V{height - 44}" stroke="#e5e7eb"/>')
        body.append(f'<text x="{x:.1f}" y="{height - 28}" text-anchor="middle">{short(tick)}</text>')
    names = []
    for group, members in groups.items():
        middle = y + len(members) * row / 2 + 4
        body.append(f'<text x="{left - 10}" y="{middle:.1f}" text-anchor="end">{escape(group)}</text>')
        for number, (name, value) in enumerate(members.items()):
            names += [name] if name not in names else []
            width = place(value) - left
            fill, figure = colour(name, number), f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            body.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{row - 3}" fill="{fill}"/>')
            body.append(f'<text x="{left + width + 5:.1f}" y="{y + row - 6}" font-size="11">{figure}</text>')
            y += row
        y += gap
    return frame(title, x_label, "", "".join(body) + legend(names, left), height=height)
