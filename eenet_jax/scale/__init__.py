"""What a training would take on a TPU slice that one hasn't got: compiled, not run."""
