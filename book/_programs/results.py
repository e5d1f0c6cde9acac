"""The results of the built book, and what is expected of them. As a program: print both."""

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def built(build: Path = ROOT / "_build") -> dict[str, dict]:
    """Return what each chapter with a result glued, by chapter.

    Raises:
        FileNotFoundError: no build got as far as its results.
    """
    return json.loads((build / "results.json").read_text())


def expected() -> dict[str, dict]:
    """Return what each chapter is expected to reach, by chapter."""
    return tomllib.loads((ROOT / "tests" / "expected_results.toml").read_text())


def complaints(results: dict[str, dict]) -> list[str]:
    """Return a line for each result that is not as required and expected."""
    all_expected = expected()
    lines = [
        f"{chapter}: no results in the built book"
        for chapter in all_expected
        if chapter not in results
    ]
    for chapter, reached in results.items():
        if chapter not in all_expected:
            lines.append(f"{chapter}: has a result, but tests/expected_results.toml expects none")
            continue
        figures = all_expected[chapter]
        accuracy, required = reached["test_accuracy"], reached["required_accuracy"]
        if not accuracy >= required:
            lines.append(f"{chapter}: test_accuracy is {accuracy:.4f}, required {required:.4f}")
        if not abs(accuracy - figures["test_accuracy"]) <= figures["tolerance"]:
            lines.append(
                f"{chapter}: test_accuracy is {accuracy:.4f}, "
                f"expected {figures['test_accuracy']:.4f} ± {figures['tolerance']}"
            )
        for figure in ("parameters", "epochs"):
            if reached[figure] != figures[figure]:
                lines.append(
                    f"{chapter}: {figure} is {reached[figure]}, expected {figures[figure]}"
                )
        for figure in ("seconds", "images_per_second", "device"):
            if not reached[figure]:
                lines.append(f"{chapter}: {figure} is {reached[figure]!r}, expected a measurement")
    return lines


def table(results: dict[str, dict]) -> list[str]:
    """Return the results beside what is required and expected, as Markdown."""
    lines = [
        "| chapter | accuracy | required | expected | difference | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for chapter, reached in results.items():
        accuracy = reached["test_accuracy"]
        usual = expected().get(chapter, {}).get("test_accuracy", float("nan"))
        lines.append(
            f"| {chapter} | {accuracy:.2%} | {reached['required_accuracy']:.0%} | {usual:.2%} "
            f"| {100 * (accuracy - usual):+.2f} points | {reached['seconds']:.0f} |"
        )
    return lines


def main():
    try:
        results = built()
    except FileNotFoundError:
        print("The build did not get as far as its results.")
        return
    print("\n".join(table(results)))
    for line in complaints(results):
        print(f"\n{line}")


if __name__ == "__main__":
    main()
