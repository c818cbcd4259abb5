"""Draw the chart of the README: `python -m benchmarks.chart peers.jsonl >chart.svg`.

Takes the JSON lines of the peers' driver. Of each library it draws the better of one and two worker processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

__all__ = ["draw", "main"]

STORES = {
    "sitq": "SQLite, synced, results",
    "sitq-postgres": "PostgreSQL, synced, results",
    "sitq-redis": "Redis in memory, results",
    "huey-sqlite": "SQLite, synced, results",
    "huey-redis": "Redis in memory, results",
    "honker": "SQLite, not synced, results",
    "litequeue": "SQLite, not synced, no results",
    "dbos-sqlite": "SQLite, synced, results",
    "pgqueuer": "PostgreSQL, synced, no results",
    "saq": "Redis in memory, results",
    "dramatiq": "Redis in memory, results",
    "taskiq-redis": "Redis in memory, results",
    "taskiq-nats": "NATS JetStream, no results",
}
_WIDTH, _ROW, _TOP, _LEFT, _BAR = 720, 30, 46, 250, 380
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .note { fill: #6e7781; font-size: 11px }
.bar { fill: #afb8c1 } .ours { fill: #1f6feb }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .note { fill: #8b949e } .bar { fill: #484f58 } }
"""


def medians(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Return each library's drained tasks a second, the best first."""
    best: dict[str, float] = {}
    for line in lines:
        if line["what"] == "drain" and "median" in line and line["peer"] in STORES:
            best[line["peer"]] = max(best.get(line["peer"], 0.0), float(line["median"]))
    return dict(sorted(best.items(), key=lambda item: -item[1]))


def draw(rates: dict[str, float]) -> str:
    """Return the chart as SVG."""
    most = max(rates.values())
    height = _TOP + _ROW * len(rates) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        "<title>No-op tasks drained a second</title>",
        f"<style>{_STYLE}</style>",
        '<text x="8" y="22" font-weight="600">No-op tasks drained a second (more is better)</text>',
    ]
    for index, (name, rate) in enumerate(rates.items()):
        middle = _TOP + _ROW * index + 10
        kind = "ours" if name.startswith("sitq") else "bar"
        length = max(2.0, _BAR * rate / most)
        parts += [
            f'<text x="8" y="{middle}">{escape(name)}</text>',
            f'<text x="8" y="{middle + 12}" class="note">{escape(STORES[name])}</text>',
            f'<rect class="{kind}" x="{_LEFT}" y="{middle - 11}" width="{length:.1f}" height="18" rx="3"/>',
            f'<text x="{_LEFT + length + 8:.1f}" y="{middle + 3}">{rate:,.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Read the lines and draw."""
    lines = [json.loads(line) for path in sys.argv[1:] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    print(draw(medians(lines)), end="")


if __name__ == "__main__":
    main()
