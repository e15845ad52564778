"""Where PyTorch and Keras models are inspected, pruned, simulated, fine-tuned and converted."""
