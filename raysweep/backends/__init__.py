"""Where the trials of a sweep run: in this process, or on Ray."""
