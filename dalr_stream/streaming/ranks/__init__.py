"""Folding by several processes, to the bits of one."""
