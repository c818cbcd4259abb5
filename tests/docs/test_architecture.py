"""The diagram of docs/architecture.md is what a task really does."""

import pytest

from docs.data_flow import BYSTANDERS, PAGE, Hop, diagram, page_with, trace


@pytest.fixture(scope="module")
def hops() -> list[Hop]:
    return [hop for hop in trace() if hop.source not in BYSTANDERS]


def test_the_diagram_is_the_trace(hops: list[Hop]) -> None:
    drawn = diagram(hop for hop in hops if hop.target not in BYSTANDERS)
    assert page_with(drawn) == PAGE.read_text(encoding="utf-8"), "run python tests/docs/data_flow.py"


def test_the_way_is_short(hops: list[Hop]) -> None:
    way = [hop for hop in hops if hop.target not in BYSTANDERS]
    assert len(way) <= 8
    assert len({file for hop in way for file in (hop.source, hop.target)}) <= 7
    assert (way[0].source, way[-1].method) == ("queue.py", "settle")


def test_the_bystanders_are_on_the_page_and_pass_nothing_on(hops: list[Hop]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for file, role in BYSTANDERS.items():
        assert f"`{file}` {role}" in text
    assert {hop.target for hop in trace()} >= set(BYSTANDERS)
    assert {hop.source for hop in trace()}.isdisjoint(BYSTANDERS)


def test_another_order_is_another_diagram(hops: list[Hop]) -> None:
    assert diagram(reversed(hops)) != diagram(hops)
