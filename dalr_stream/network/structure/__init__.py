"""Which channels of a network are coupled, found and proved on a batch."""
