"""A pytest plugin that writes one JSON line per finished test to the file that RESULTS names. Used by run.py."""

import json
import os


def tell(name: str, outcome: str, seconds: float, text: str) -> None:
    with open(os.environ["RESULTS"], "a", encoding="utf-8") as f:
        f.write(json.dumps({"name": name, "outcome": outcome, "seconds": seconds, "text": text}) + "\n")


def pytest_runtest_logreport(report):
    "A test counts once: when it ran, when it was skipped, and when its preparation or its tidying failed."
    if report.when == "call" or report.outcome != "passed":
        reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else report.longreprtext
        tell(report.nodeid, report.outcome, report.duration, reason)


def pytest_collectreport(report):
    if report.failed:
        tell(report.nodeid, "failed", 0.0, report.longreprtext)
    elif report.skipped:
        tell(report.nodeid, "skipped", 0.0, report.longrepr[2])
