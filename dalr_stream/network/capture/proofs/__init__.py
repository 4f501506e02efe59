"""What is proved of a capture on its first batch: batches changed in one place, and what layers see of it."""
