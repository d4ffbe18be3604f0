"""Classify images on a cluster with Ray: `clf-batch`. Needs clf_runtime, ray, pyarrow and fsspec."""
