"""What a run looks like: its data, thinned as they come, and its pictures and pages."""
