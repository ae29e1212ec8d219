"""From the command's words to one run, and the console."""
