"""What a run has to show: the results behind its report, tables for the terminal, published numbers beside them."""
