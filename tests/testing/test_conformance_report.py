"""Reports of the conformance suite: counts, plain data and JUnit XML, whatever an accelerator writes into a message."""

from __future__ import annotations

from xml.etree import ElementTree

from accel.testing.conformance.report import ConformanceReport, TestResult

PASSED = TestResult("kicks", "inside", "A kick ends it.", "passed", seconds=0.25)
FAILED = TestResult("exits", "out", "Data comes out.", "failed", "came out with \x1b[31m\0 & <none>", "a\x07b", 0.5)
SKIPPED = TestResult("kicks", "of_all", "All are kicked.", "skipped", "toy does not claim it")


def test_report_counts_by_group_in_order_of_their_first_test() -> None:
    report = ConformanceReport.of("toy", [PASSED, FAILED, SKIPPED])
    assert [(group.name, len(group.tests)) for group in report.groups] == [("kicks", 2), ("exits", 1)]
    assert [report.groups[0].count(outcome) for outcome in ("passed", "failed", "skipped")] == [1, 0, 1]
    assert report.all("failed") == [FAILED]
    assert (report.passed, report.seconds) == (False, 0.75)
    assert ConformanceReport.of("toy", [PASSED, SKIPPED]).passed


def test_report_data_has_each_test_without_its_traceback() -> None:
    data = ConformanceReport.of("toy", [PASSED, FAILED]).to_data()
    assert data["groups"][1] == {"name": "exits", "passed": 0, "failed": 1, "skipped": 0, "seconds": 0.5}
    assert [one["name"] for one in data["tests"]] == ["inside", "out"]
    assert "detail" not in data["tests"][1]


def test_report_junit_can_be_read_whatever_a_message_holds() -> None:
    root = ElementTree.fromstring(ConformanceReport.of("toy", [PASSED, FAILED, SKIPPED]).to_junit())
    kicks, exits = root
    assert (kicks.get("tests"), kicks.get("failures"), kicks.get("skipped")) == ("2", "0", "1")
    failure = exits[0][0]
    assert failure.get("message") == "came out with ?[31m? & <none>"
    assert failure.text == "rule: Data comes out.\n\na?b"
    assert (exits[0].get("classname"), exits[0].get("name")) == ("toy.exits", "out")
    assert [one.get("message") for one in root.iter("skipped")] == ["toy does not claim it"]
