"""Passes, the pipeline that runs them, and instruments."""
