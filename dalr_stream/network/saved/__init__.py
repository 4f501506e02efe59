"""Networks on disk: checkpoints, model cards, pretrained weights."""
