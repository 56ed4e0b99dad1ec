"""Training cut models: batches, losses, and one loop with checkpoints on Accelerate. Needs torch; imported on demand."""
