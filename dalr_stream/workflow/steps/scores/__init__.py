"""How well a compressed network does on labelled batches, as it is and fine-tuned."""
