"""TFDS builders that read the publishers' archives, without TensorFlow."""
