"""Solving again from fewer samples: error bars, whether there are enough samples, and which ridge is best."""
