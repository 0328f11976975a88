"""The pretraining loop, its state, its optimiser and its processes."""
