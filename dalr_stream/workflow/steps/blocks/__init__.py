"""Steps of a run whose network goes through memory block by block."""
