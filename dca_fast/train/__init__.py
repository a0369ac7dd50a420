"""Training: data, initialisation, the trainer. Needs nothing beyond the core dependencies."""
