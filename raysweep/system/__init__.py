"""The operating system and the process: paths, files, locks, temporary directories, cores, memory and the terminal."""
