"""The only ring that knows torch: watches a network's layers, and rebuilds a network around smaller ones."""
