"""Guards: the code that a configuration may name, the size that it may have, and the secrets that it must not leak."""
