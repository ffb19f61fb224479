"""What a run of the suite came to: values, and their forms for scripts: plain data for JSON, and JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal
from xml.etree import ElementTree

from attrs import frozen

Outcome = Literal["passed", "failed", "skipped"]


@frozen
class TestResult:
    """How one test ended.

    Attributes:
        group: The group of rules that it belongs to.
        name: What it shows, in short.
        rule: The rule, in a sentence.
        outcome: How it ended.
        text: What the accelerator did, or why the test was skipped; empty if it passed.
        detail: Where that was seen, for people who look for the reason: a traceback or the process's last words.
        seconds: How long it took.
    """

    group: str
    name: str
    rule: str
    outcome: Outcome
    text: str = ""
    detail: str = ""
    seconds: float = 0.0

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "group": self.group,
            "name": self.name,
            "rule": self.rule,
            "outcome": self.outcome,
            "text": self.text,
            "seconds": round(self.seconds, 3),
        }


# pytest takes classes of such names for tests.
TestResult.__test__ = False  # type: ignore[attr-defined]


@frozen
class GroupResult:
    """How the tests of a group ended.

    Attributes:
        name: Its name.
        tests: Its tests, in the order in which they ran.
    """

    name: str
    tests: tuple[TestResult, ...]

    def count(self, outcome: Outcome) -> int:
        """Return how many tests ended so."""
        return sum(one.outcome == outcome for one in self.tests)

    @property
    def seconds(self) -> float:
        """How long they took."""
        return sum(one.seconds for one in self.tests)


@frozen
class ConformanceReport:
    """How an accelerator did.

    Attributes:
        accelerator: Its name.
        groups: The groups that ran.
    """

    accelerator: str
    groups: tuple[GroupResult, ...]

    @classmethod
    def of(cls, accelerator: str, tests: Iterable[TestResult]) -> ConformanceReport:
        """Return the report of tests, with their groups in the order in which they come first."""
        groups: dict[str, list[TestResult]] = {}
        for one in tests:
            groups.setdefault(one.group, []).append(one)
        return cls(accelerator, tuple(GroupResult(name, tuple(found)) for name, found in groups.items()))

    def all(self, outcome: Outcome) -> list[TestResult]:
        """Return the tests that ended so."""
        return [one for group in self.groups for one in group.tests if one.outcome == outcome]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.all("failed")

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return sum(group.seconds for group in self.groups)

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "format": 1,
            "accelerator": self.accelerator,
            "passed": self.passed,
            "groups": [
                {
                    "name": group.name,
                    "passed": group.count("passed"),
                    "failed": group.count("failed"),
                    "skipped": group.count("skipped"),
                    "seconds": round(group.seconds, 3),
                }
                for group in self.groups
            ],
            "tests": [one.to_data() for group in self.groups for one in group.tests],
        }

    def to_junit(self) -> str:
        """Return it as JUnit XML, a suite for each group."""
        root = ElementTree.Element("testsuites", name=f"conformance of {self.accelerator}")
        for group in self.groups:
            suite = ElementTree.SubElement(
                root,
                "testsuite",
                name=group.name,
                tests=str(len(group.tests)),
                failures=str(group.count("failed")),
                errors="0",
                skipped=str(group.count("skipped")),
                time=f"{group.seconds:.3f}",
            )
            for one in group.tests:
                _add_case(suite, self.accelerator, one)
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ElementTree.Element, accelerator: str, one: TestResult) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"{accelerator}.{one.group}", name=one.name, time=f"{one.seconds:.3f}"
    )
    if one.outcome == "skipped":
        ElementTree.SubElement(case, "skipped", message=_plain(one.text))
    elif one.outcome == "failed":
        failure = ElementTree.SubElement(case, "failure", message=_plain(one.text))
        failure.text = _plain(f"rule: {one.rule}\n\n{one.detail}")


def _plain(text: str) -> str:
    """Return `text` without what XML cannot hold; an accelerator has a say in it."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
