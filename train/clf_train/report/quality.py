"""What report.html shows about the data: likely wrong labels, near-duplicates, outliers, confusions, more images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clf_train.data_quality.analysis import DataQuality
from clf_train.data_quality.confusions import ConfusedPair
from clf_train.data_quality.duplicates import DuplicatePair
from clf_train.data_quality.learning_curve import LearningCurve
from clf_train.data_quality.pool import SPLITS
from clf_train.report.curve_chart import CurveChart, draw_learning_curve
from clf_train.report.splits import LabeledSplits
from clf_train.report.thumbnails import encode_images

MAX_LABEL_ISSUES, MAX_DUPLICATES, MAX_OUTLIERS, MAX_PAIRS = 30, 12, 12, 8

_ISSUES_BYTES, _DUPLICATES_BYTES, _OUTLIERS_BYTES = 250_000, 130_000, 80_000

_ADVICE = {
    "labels": "Check their labels first: many of these images are among the likely wrong labels.",
    "few": "Photograph more {first}: there are {first_images:,} images of it, and {second_images:,} of {second}.",
    "overlap": "Write down when an image is {first} and when {second}, or merge the two classes.",
    "direction": "Photograph more {first} that can be taken for {second}, from the side that tells them apart.",
    "images": "Photograph more {first} that can be taken for {second}, and the reverse.",
}


@dataclass(frozen=True)
class DataCard:
    """An image of any split, with its label."""

    source: str  # a data URI
    name: str
    label: str
    split: str
    suggested: str = ""  # for a likely wrong label


@dataclass(frozen=True)
class DuplicateCards:
    """Two images that are nearly the same."""

    first: DataCard
    second: DataCard
    note: str  # what is wrong with it; empty if nothing is


@dataclass(frozen=True)
class PairRow:
    """Two classes that are confused, and one sentence of advice."""

    first: str
    second: str
    pair: ConfusedPair
    advice: str


@dataclass(frozen=True)
class QualitySection:
    """Everything that the template reads about the data."""

    images: int
    label_issues: tuple[DataCard, ...]
    label_issue_count: int
    duplicates: tuple[DuplicateCards, ...]
    duplicate_count: int
    across_splits: int  # pairs of a test image and another one
    contradictions: int  # pairs with different labels
    outliers: tuple[DataCard, ...]
    outlier_count: int
    pairs: tuple[PairRow, ...]
    pair_count: int
    curve: LearningCurve | None
    chart: CurveChart | None


def build_quality_section(splits: LabeledSplits, quality: DataQuality, labels: Sequence[str]) -> QualitySection:
    """Return the section about the data.

    Args:
        splits: the images.
        quality: what was found about them.
        labels: of the classes, short enough to be shown.
    """
    builder = _CardBuilder(splits, labels)
    duplicates = sorted(quality.duplicates, key=lambda pair: (not builder.note(pair), -pair.similarity))
    targets = splits.targets
    return QualitySection(
        images=len(splits),
        label_issues=builder.label_issues(quality),
        label_issue_count=len(quality.label_issues),
        duplicates=builder.duplicates(duplicates[:MAX_DUPLICATES]),
        duplicate_count=len(duplicates),
        across_splits=sum(splits.is_across(pair.first, pair.second) for pair in duplicates),
        contradictions=sum(bool(targets[pair.first] != targets[pair.second]) for pair in duplicates),
        outliers=builder.outliers(quality),
        outlier_count=len(quality.outliers),
        pairs=tuple(_describe_pair(pair, labels) for pair in quality.confused_pairs[:MAX_PAIRS]),
        pair_count=len(quality.confused_pairs),
        curve=quality.learning_curve,
        chart=None if quality.learning_curve is None else draw_learning_curve(quality.learning_curve),
    )


def _describe_pair(pair: ConfusedPair, labels: Sequence[str]) -> PairRow:
    first, second = labels[pair.first], labels[pair.second]
    advice = _ADVICE[pair.advice].format(
        first=first, second=second, first_images=pair.first_images, second_images=pair.second_images
    )
    return PairRow(first, second, pair, advice)


@dataclass(frozen=True)
class _CardBuilder:
    """Builds cards of images of all splits."""

    splits: LabeledSplits
    labels: Sequence[str]

    def note(self, pair: DuplicatePair) -> str:
        """Return what is wrong with a pair of near-duplicates; empty if nothing is."""
        notes = []
        if self.splits.targets[pair.first] != self.splits.targets[pair.second]:
            notes.append("different labels")
        if self.splits.is_across(pair.first, pair.second):
            notes.append("one is a test image")
        return ", ".join(notes)

    def label_issues(self, quality: DataQuality) -> tuple[DataCard, ...]:
        issues = quality.label_issues[:MAX_LABEL_ISSUES]
        sources = self._encode([issue.index for issue in issues], _ISSUES_BYTES)
        return tuple(
            self._card(issue.index, source, suggested=self.labels[issue.suggested])
            for issue, source in zip(issues, sources, strict=True)
        )

    def duplicates(self, pairs: Sequence[DuplicatePair]) -> tuple[DuplicateCards, ...]:
        sources = self._encode([index for pair in pairs for index in (pair.first, pair.second)], _DUPLICATES_BYTES)
        return tuple(
            DuplicateCards(
                self._card(pair.first, sources[2 * place]),
                self._card(pair.second, sources[2 * place + 1]),
                self.note(pair),
            )
            for place, pair in enumerate(pairs)
        )

    def outliers(self, quality: DataQuality) -> tuple[DataCard, ...]:
        outliers = quality.outliers[:MAX_OUTLIERS]
        sources = self._encode([outlier.index for outlier in outliers], _OUTLIERS_BYTES)
        return tuple(self._card(outlier.index, source) for outlier, source in zip(outliers, sources, strict=True))

    def _card(self, index: int, source: str, suggested: str = "") -> DataCard:
        split = SPLITS[self.splits.split_of(index)]
        label = self.labels[int(self.splits.targets[index])]
        return DataCard(source, self.splits.name(index), label, split, suggested)

    def _encode(self, indices: Sequence[int], budget_bytes: int) -> tuple[str, ...]:
        return encode_images(self.splits.pixels, indices, budget_bytes).sources
