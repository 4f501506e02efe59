"""Compressing layer after layer where one block of the network is in memory at a time."""
