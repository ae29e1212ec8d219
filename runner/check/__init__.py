"""Check that the parts of a configuration keep the contract."""
