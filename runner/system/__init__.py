"""Processes, signals, files and start-up: the operating system's side, independent of runs."""
