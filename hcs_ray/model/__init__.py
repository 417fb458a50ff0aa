"""The network, what it is fed with, and how it learns."""
