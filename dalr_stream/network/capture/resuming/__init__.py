"""Passes that go on from where the one before left a network: which calls are done there, and what they gave."""
