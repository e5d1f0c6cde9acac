"""Print the results of a build beside what is required and expected, as a Markdown table."""

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
results = ROOT / "_build" / "results.json"

if not results.exists():
    print("The build did not get as far as its results.")
else:
    expected = tomllib.loads((ROOT / "tests" / "expected_results.toml").read_text())
    print("| chapter | accuracy | required | expected | difference | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for chapter, built in json.loads(results.read_text()).items():
        accuracy, usual = built["test_accuracy"], expected[chapter]["test_accuracy"]
        print(
            f"| {chapter} | {accuracy:.2%} | {built['required_accuracy']:.0%} | {usual:.2%} "
            f"| {100 * (accuracy - usual):+.2f} points | {built['seconds']:.0f} |"
        )
