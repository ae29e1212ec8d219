"""The report of a sweep, or of any set of runs: what they come to, in words, tables and plots."""
