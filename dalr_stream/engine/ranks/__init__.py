"""Processes of one job: how they find one another, what they send, and how they learn that one was lost."""
