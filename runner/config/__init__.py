"""From YAML and words to checked values and built parts."""
