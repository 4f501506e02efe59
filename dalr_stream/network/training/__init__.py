"""Fine-tuning of a compressed network, resumed after the last epoch."""
