"""The Keras 3 engine."""
