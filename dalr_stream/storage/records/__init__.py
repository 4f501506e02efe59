"""Records of a store: moments, the weights of layers, and solutions."""
