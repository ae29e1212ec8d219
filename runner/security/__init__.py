"""What a configuration may name, hold and leak."""
