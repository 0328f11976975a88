"""The results directory of a sweep: results, checkpoints, encoder files, buckets and TensorBoard events."""
