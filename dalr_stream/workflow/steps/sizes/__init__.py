"""Which size each layer of the saved network has: by name, by a rule, or by search."""
