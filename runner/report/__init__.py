"""The report of a sweep, or of any set of runs: the results in words, tables and plots."""
