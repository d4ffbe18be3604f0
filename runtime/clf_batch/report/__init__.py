"""`clf-batch report`: what a run found, and how it differs from another run."""
