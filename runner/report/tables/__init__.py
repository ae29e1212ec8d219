"""The tables and the text of a sweep's report."""
