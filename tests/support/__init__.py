"""Helpers of the tests: models and files that they make, and the recordings."""
