"""What a network costs: multiply-adds, latency, and what need not be run again."""
