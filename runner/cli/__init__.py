"""The command line: from its words to one run, and the console."""
