"""Accuracy against trainable parameters, as a picture of the first table of FIGURES.md: `python tests/bench/picture.py`

writes tests/bench/methods.svg, which the README shows.
"""

import math
import re
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 360, 56, 24, 40, 52
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222 } .axis { stroke: #999; stroke-width: 1 } .grid { stroke: #ddd }
.small { fill: #666; font-size: 12px } .bar { stroke: #2a6fb0; stroke-width: 1.5 } circle { fill: #2a6fb0 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .axis { stroke: #777 } .grid { stroke: #333 } .small { fill: #aaa }
  .bar { stroke: #7ab8f0 } circle { fill: #7ab8f0 }
}"""
# where the name of a method stands beside its point, so that none lies over another: (x, y, anchor)
PLACES = {
    **{"bitfit": (-9, -4, "end"), "ia3": (-9, 4, "end"), "lora": (-9, -4, "end"), "dora": (9, 12, "start")},
    **{"prefix": (9, 10, "start"), "houlsby": (9, -6, "start"), "pfeiffer": (-9, -6, "end"), "full": (-9, -8, "end")},
}
TITLE = "SST-2, 2,000 training rows: dev accuracy in per cent, each method at its defaults, 3 seeds"


def rows() -> list[tuple[str, int, list[float]]]:
    """(method, trainable parameters, accuracy of each seed), as the table has them."""
    text = (HERE / "FIGURES.md").read_text(encoding="utf-8")
    section = text[text.index("## The methods") : text.index("## ", text.index("## The methods") + 3)]
    found = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| [\d.]+% \| [\d.]+ \(([^)]*)\)", section, re.MULTILINE)
    return [(name, int(count.replace(",", "")), [float(x) for x in seeds.split(",")]) for name, count, seeds in found]


def picture(methods: list[tuple[str, int, list[float]]]) -> str:
    low, high, bottom, top = 2.6, 7.6, 74.0, 85.0  # log10 of the parameters; per cent

    def x(count: float) -> float:
        return LEFT + (math.log10(count) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(accuracy: float) -> float:
        return HEIGHT - BOTTOM - (accuracy - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', f"<style>{STYLE}</style>"]
    out.append(f'<text x="{LEFT}" y="20">{TITLE}</text>')
    for value in range(74, 85, 2):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        out.append(f'<text class="small" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    for power, shown in ((3, "1,000"), (4, "10,000"), (5, "100,000"), (6, "1 million"), (7, "10 million")):
        out.append(f'<text class="small" x="{x(10**power):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{shown}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    out.append(f'<text class="small" x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">trainable parameters</text>')
    for name, count, seeds in methods:
        mean, (dx, dy, anchor) = sum(seeds) / len(seeds), PLACES.get(name, (9, 4, "start"))
        out.append(f'<line class="bar" x1="{x(count):.1f}" x2="{x(count):.1f}" y1="{y(min(seeds)):.1f}" y2="{y(max(seeds)):.1f}"/>')
        out.append(f'<circle cx="{x(count):.1f}" cy="{y(mean):.1f}" r="4.5"/>')
        out.append(f'<text x="{x(count) + dx:.1f}" y="{y(mean) + dy:.1f}" text-anchor="{anchor}">{name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    (HERE / "methods.svg").write_text(picture(rows()), encoding="utf-8")
