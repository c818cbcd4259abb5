"""The benchmarks run: the figures in the documentation are theirs, so they must not break unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import raw
from benchmarks.__main__ import MEASUREMENTS
from benchmarks.figures import Scale
from benchmarks.speed import Files, fill

SMALL = Scale(pairs=1, tasks=400, rounds=3, idle_seconds=0.1, deep_rows=200)


def test_the_raw_store_ends_every_task(tmp_path: Path) -> None:
    path = str(tmp_path / "raw.db")
    raw.make_file(path)
    fill(path, 250)
    done, _ = raw.drain(path)
    connection = raw.connect(path)
    states = connection.execute("SELECT status, outcome, count(*) FROM sitq_tasks GROUP BY 1, 2").fetchall()
    connection.close()
    assert done == 250
    assert states == [(2, "success", 250)]


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_gives_figures(tmp_path: Path, name: str) -> None:
    figures = list(MEASUREMENTS[name](SMALL, Files(tmp_path / "bench")))
    assert figures
    assert all(figure.sitq >= 0 for figure in figures)
