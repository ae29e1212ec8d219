"""A sweep's report as numbers and words."""
