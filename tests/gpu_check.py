"""Say what a GPU did for the book and the bench; fail where they did not run on it.

It reads what `make book` and `make bench` wrote to _build; `make gpu-check` runs all three.
"""

import json
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINING = {"fully_connected": "fully connected, training", "cnn": "cnn, training"}


def complaint(results: dict, bench: dict, expected: dict) -> str | None:
    """Return in one line what is wrong, or nothing."""
    for chapter, figures in expected.items():
        if chapter not in results:
            return f"{chapter}: no results in the built book"
        built = results[chapter]
        if not built["device"].startswith("GPU"):
            return f"{chapter} was trained on {built['device']}, not on a GPU"
        usual, tolerance = figures["test_accuracy"], figures["tolerance"]
        if not abs(built["test_accuracy"] - usual) <= tolerance:
            return (
                f"{chapter}: test accuracy {built['test_accuracy']:.4f}, "
                f"on a CPU {usual:.4f} ± {tolerance}"
            )
    if not bench["gpu"]:
        return f"the bench ran on {bench['device']}, not on a GPU"
    return None


def lines(results: dict, bench: dict) -> list[str]:
    """Return the table, as Markdown."""
    table = [
        "| chapter | device | seconds per epoch | seconds to the required accuracy "
        "| times as fast as model.fit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for chapter, built in results.items():
        took = bench.get("seconds_to_required", {}).get(chapter)
        ratios = [row["ratio"] for row in bench["rows"] if row["what"] == TRAINING.get(chapter)]
        table.append(
            f"| {chapter} | {built['device']} | {built['seconds'] / built['epochs']:.2f} "
            f"| {f'{took:.1f}' if took else 'not reached'} "
            f"| {', '.join(f'{ratio:.2f}' for ratio in ratios) or 'not measured'} |"
        )
    return table


def main(build: Path) -> None:
    for name in ("results.json", "bench.json"):
        if not (build / name).exists():
            sys.exit(f"gpu-check: there is no {build / name}: run make gpu-check")
    results = json.loads((build / "results.json").read_text())
    bench = json.loads((build / "bench.json").read_text())
    expected = tomllib.loads((ROOT / "tests" / "expected_results.toml").read_text())
    if wrong := complaint(results, bench, expected):
        sys.exit(f"gpu-check: {wrong}")
    print("\n".join(lines(results, bench)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build")
