"""Whether what a configuration names keeps the contract."""
