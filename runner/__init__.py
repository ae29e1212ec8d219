"""Which optimizer, on which loss, from where, at which learning rate, and what happened at every step."""

__version__ = "0.1.0"
