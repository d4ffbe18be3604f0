"""Serve an exported image classifier over HTTP: `clf-serve`. Needs clf_runtime, uvicorn and prometheus-client."""
