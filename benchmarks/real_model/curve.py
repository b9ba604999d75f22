"""Accuracy over steps as an SVG: one panel a metric, one line a run. No dependency. Called by run.py."""

from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]  # (step, fraction)

COLOURS = ("#0b62a8", "#c2570c", "#3d7a35")
PANEL_WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 330, 250, 42, 30, 34, 44
FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="11"'


def draw(panels: Mapping[str, Mapping[str, Points]]) -> str:
    """The SVG of {panel title: {run: points}}; all panels share the axes."""
    lines = [points for runs in panels.values() for points in runs.values()]
    last_step = max(step for points in lines for step, _ in points)
    top = min(1.0, -(-max(value for points in lines for _, value in points) // 0.2) * 0.2)  # up to a whole 20%
    width = PANEL_WIDTH * len(panels)
    body = [
        _panel(title, runs, PANEL_WIDTH * index, last_step, top) for index, (title, runs) in enumerate(panels.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}" '
        f'{FONT}>\n<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _panel(title: str, runs: Mapping[str, Points], offset: float, last_step: float, top: float) -> str:
    def x(step: float) -> float:
        return offset + LEFT + step / last_step * (PANEL_WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{x(0):.1f}" y="18" fill="#222222" font-weight="bold">{title}</text>']
    for percent in range(0, round(100 * top) + 1, 20):
        at = y(percent / 100)
        parts.append(f'<path d="M{x(0):.1f} {at:.1f}H{x(last_step):.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x(0) - 6:.1f}" y="{at + 4:.1f}" fill="#555555" text-anchor="end">{percent}%</text>')
    for step in range(0, int(last_step) + 1, max(1, int(last_step) // 4)):
        at = f'x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 15}"'
        parts.append(f'<text {at} fill="#555555" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{x(last_step):.1f}" y="{HEIGHT - 5}" fill="#555555" text-anchor="end">step</text>')
    for points, colour in zip(runs.values(), COLOURS, strict=False):
        path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.6" fill="{colour}"/>' for s, v in points]
    label = 0.0
    for (name, points), colour in sorted(zip(runs.items(), COLOURS, strict=False), key=lambda run: -run[0][1][-1][1]):
        step, value = points[-1]
        label = max(y(value) + 4, label + 12)  # the best line's name on top, none on another
        parts.append(f'<text x="{x(step) + 6:.1f}" y="{label:.1f}" fill="{colour}">{name}</text>')
    return "\n".join(parts)
