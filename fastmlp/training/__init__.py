"""Training: a fit, the trainer of one network or many, single steps, predictions."""
