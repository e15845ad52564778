"""The target device: measure on it, write precision that runs on it, read back what ran."""
