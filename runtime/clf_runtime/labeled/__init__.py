"""Labeled images as people have them: class folders, archives of them, and manifests in several formats.

Training and evaluation read them here. Nothing but numpy and Pillow is needed; only a Parquet manifest needs pyarrow.
"""

from clf_runtime.labeled.find import find_labeled_images
from clf_runtime.labeled.images import Columns, ImageFile, LabeledImages, Split

__all__ = ["Columns", "ImageFile", "LabeledImages", "Split", "find_labeled_images"]
