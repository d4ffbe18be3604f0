"""Export a trained classifier: files for other machines, each with a parity check."""

import clf_runtime  # noqa: F401 (switches the telemetry of onnxruntime off, before anything imports onnxruntime)
