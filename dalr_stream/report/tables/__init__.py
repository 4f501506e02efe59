"""The tables of a report: what stands in which cell."""
