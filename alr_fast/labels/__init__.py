"""Which given labels are wrong: scores, tables, a page to review them, and marks of people."""

from alr_fast.labels.issues import LabelIssues, find_issues
from alr_fast.labels.marks import read_label_studio, read_marks

__all__ = ["LabelIssues", "find_issues", "read_label_studio", "read_marks"]
