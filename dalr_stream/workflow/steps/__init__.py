"""The steps of a run, one a module, and the list of them."""
