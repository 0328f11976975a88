"""The operating system and the process: paths, files, locks, temporary directories, processors, memory, terminal."""
