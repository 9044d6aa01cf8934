"""What the demo says: one line for each thing proven, as it is proven."""

from __future__ import annotations

from dataclasses import dataclass, field

_NAME, _RESULT = 50, 8


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried.

    Args:
        name: what was tried.
        result: what came of it, in a word.
        evidence: how that is known: the refusing side's own reason.
        holds: whether it is as it must be.
    """

    name: str
    result: str
    evidence: str
    holds: bool = True


@dataclass
class Report:
    """Prints findings and remembers whether all of them hold."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether there are findings, and all of them are as they must be."""
        return bool(self.findings) and all(finding.holds for finding in self.findings)

    def title(self, text: str) -> None:
        """Say what comes now."""
        print(f"\n{text}", flush=True)

    def note(self, text: str) -> None:
        """Say something that needs no proof."""
        print(f"  {text}", flush=True)

    def add(self, finding: Finding) -> None:
        """Say what was found."""
        self.findings.append(finding)
        mark = "ok    " if finding.holds else "FAILED"
        print(f"  {mark}  {finding.name:<{_NAME}}  {finding.result:<{_RESULT}}  {finding.evidence}", flush=True)
