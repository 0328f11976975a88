"""The results directory: results, checkpoints, encoder files, buckets, and TensorBoard events."""
