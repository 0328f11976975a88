"""What limits a sweep of very many trials on very many nodes, measured on one machine.

    python benchmarks/scale.py

The driver: sweeps on Ray with many logical cores, whose trials only sleep, report and write their files, so that far
more of them run at a time than there are processors; all else is what `run_sweep.py` does. Storage: what one real trial
leaves in a directory, asks of its file system (counted by strace, where there is one) and of a bucket (counted by an S3
server on this machine). TensorBoard: how long it takes over many runs. Start-up: a sweep of many trials read, written,
read again and reported.

Written to `benchmarks/results/scale.json`. Needs Linux (`/proc`).
"""
