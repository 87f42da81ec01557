"""Results of the last run in a folder of runs."""

import csv
import json


def summary_of(runs):
    return json.loads((runs / "latest" / "summary.json").read_text())


def metrics_of(runs):
    with (runs / "latest" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
