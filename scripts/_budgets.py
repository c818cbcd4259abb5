"""Size budgets: no file over 500 lines, no function over 60. There is no list of exceptions; split the thing."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 500
FUNCTION_LINES = 60
ROOT = Path(__file__).parents[1]


def over_budget(path: Path) -> Iterator[str]:
    source = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT)
    if (lines := len(source.splitlines())) > FILE_LINES:
        yield f"{name}: {lines} lines, over {FILE_LINES}"
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{name}:{node.lineno}: {node.name}() has {lines} lines, over {FUNCTION_LINES}"


def main() -> int:
    python = [path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    findings = [finding for path in sorted(python + scripts) for finding in over_budget(path)]
    print(*findings, sep="\n", end="\n" if findings else "")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
