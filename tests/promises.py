"""The table in docs/reliability.md, made from the tests: what each fault leads to, and which tests cause it.

A test of a fault says so: ``@pytest.mark.promise("fault", "what happens")``; what happens is said once for each fault.

    python -m tests.promises    # writes the table
"""

import ast
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
_BEGIN, _END = "<!-- made by `python -m tests.promises` -->\n", "<!-- end -->\n"


def marked_tests():
    """Yield (fault, what happens or "", file, test) for each mark, in the order of files and lines."""
    for path in sorted(TESTS.glob("test_*.py")):
        for test in ast.parse(path.read_text()).body:
            for mark in test.decorator_list if isinstance(test, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                    fault, promise = [*map(ast.literal_eval, mark.args), ""][:2]
                    yield fault, promise, path.name, test.name


def table():
    """The table as Markdown.

    Raises:
        ValueError: a fault has no promise, or two.
    """
    promises, tests = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for fault, promise, file, test in marked_tests():
        promises[fault] += [promise] if promise else []
        tests[fault][file].append(test.removeprefix("test_").replace("_", " "))
    wrong = [fault for fault in tests if len(promises[fault]) != 1]
    if wrong:
        raise ValueError(f"these faults need one promise each: {wrong}")
    lines = ["| fault | what happens | tests that cause it |", "| --- | --- | --- |"]
    for fault in sorted(tests):
        told = "; ".join(f"`{file}`: {', '.join(names)}" for file, names in sorted(tests[fault].items()))
        lines.append(f"| {fault} | {promises[fault][0]} | {told} |")
    return "\n".join(lines) + "\n"


def page():
    """The whole page with the table as it should be."""
    before, rest = PAGE.read_text().split(_BEGIN)
    return before + _BEGIN + "\n" + table() + "\n" + _END + rest.split(_END)[1]


if __name__ == "__main__":
    PAGE.write_text(page())
