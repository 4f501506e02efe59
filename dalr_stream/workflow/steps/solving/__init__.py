"""How a layer is solved as the run file asks: its ridge, in what memory, how sure it is, and what is kept of it."""
