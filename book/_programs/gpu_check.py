"""Say what a GPU did for the book and the bench; fail where they did not run on it.

It reads what `make book` and `make bench` wrote to _build; `make gpu-check` runs all three.
"""

import json
import sys
from pathlib import Path

import results

TRAINING = {"fully_connected": "fully connected, training", "cnn": "cnn, training"}


def complaint(built: dict, bench: dict) -> str | None:
    """Return in one line what is wrong, or nothing."""
    for chapter, reached in built.items():
        if not reached["device"].startswith("GPU"):
            return f"{chapter} was trained on {reached['device']}, not on a GPU"
    if wrong := results.complaints(built):
        return wrong[0]
    if not bench["gpu"]:
        return f"the bench ran on {bench['device']}, not on a GPU"
    return None


def lines(built: dict, bench: dict) -> list[str]:
    """Return the table, as Markdown."""
    table = [
        "| chapter | device | seconds per epoch | seconds to the required accuracy "
        "| times as fast as model.fit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for chapter, reached in built.items():
        took = bench.get("seconds_to_required", {}).get(chapter)
        ratios = [row["ratio"] for row in bench["rows"] if row["what"] == TRAINING.get(chapter)]
        table.append(
            f"| {chapter} | {reached['device']} | {reached['seconds'] / reached['epochs']:.2f} "
            f"| {f'{took:.1f}' if took else 'not reached'} "
            f"| {', '.join(f'{ratio:.2f}' for ratio in ratios) or 'not measured'} |"
        )
    return table


def main(build: Path) -> None:
    for name in ("results.json", "bench.json"):
        if not (build / name).exists():
            sys.exit(f"gpu-check: there is no {build / name}: run make gpu-check")
    built, bench = results.built(build), json.loads((build / "bench.json").read_text())
    if wrong := complaint(built, bench):
        sys.exit(f"gpu-check: {wrong}")
    print("\n".join(lines(built, bench)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else results.ROOT / "_build")
