"""Networks that run block by block: which modules are blocks, whose weights are in memory, what is proved of it."""
