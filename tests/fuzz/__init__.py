"""Fuzz targets: one module for each family of readers, the corpora, and the driver `python -m tests.fuzz`."""
