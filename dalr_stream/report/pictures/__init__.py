"""The pictures of a report: what is drawn, and what its caption says."""
