"""Many jobs as one program."""
