"""What comes into a report: the record of a run, and what it holds."""
