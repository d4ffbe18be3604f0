"""label_issues.csv: the images whose label is likely wrong, to check them and to fix them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from clf_train.data_quality.label_issues import LabelIssue
from clf_train.data_quality.pool import SPLITS
from clf_train.portable import portable_path
from clf_train.report.splits import LabeledSplits


def csv_from_label_issues(issues: Sequence[LabelIssue], splits: LabeledSplits, labels: Sequence[str]) -> str:
    """Return the text of the file, the likeliest wrong label first.

    Args:
        issues: the likely wrong labels.
        splits: the images.
        labels: of the classes.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "split", "label", "suggested", "label_probability", "suggested_probability", "margin"))
    for issue in issues:
        place = (portable_path(splits.name(issue.index)), SPLITS[splits.split_of(issue.index)])
        numbers = (issue.given_probability, issue.suggested_probability, issue.margin)
        rows.writerow((*place, labels[issue.given], labels[issue.suggested], *(f"{number:.4f}" for number in numbers)))
    return text.getvalue()
