"""Processes, signals, files and start-up: the operating system's side, which knows nothing of runs."""
