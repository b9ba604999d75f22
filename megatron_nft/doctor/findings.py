"""A row of the doctor's table."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    status: Status
    value: str
    reason: str = ""
    remedy: str = ""


def ok(check: str, value: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, status="ok", value=value)


def warn(check: str, value: str, reason: str, remedy: str) -> Finding:
    """Works, or may; not as it should."""
    return Finding(check=check, status="warn", value=value, reason=reason, remedy=remedy)


def fail(check: str, value: str, reason: str, remedy: str) -> Finding:
    """Will break a run."""
    return Finding(check=check, status="FAIL", value=value, reason=reason, remedy=remedy)
