"""Multi-exit networks with a learned, budgeted early-exit scheduler, in JAX and Flax."""
