#!/usr/bin/env bash
# Tries slurm.sbatch on a real Slurm of one machine with two nodes (Debian's; installed if it is not there): a job is told
# that its time limit is near, goes on when Slurm runs it again, is killed in the middle of a trial and requeued, and
# must give the results of an undisturbed sweep, bit for bit. A job that fails must have run_sweep.py's exit status.
#
#   make .venv/installed && cluster/try_slurm.sh
#
# Takes about three times as long as the sweep, and four minutes. Everything that it starts it ends, and it leaves nothing
# behind but the packages (where systemd runs, Debian's enable their services, which this does not use). SPACE names another search space than the quickstart, PYTHON another interpreter than .venv's.
# Exit status: 0 if everything holds.
set -euo pipefail
cd "$(dirname "$0")/.."

SPACE=${SPACE:-search_spaces/quickstart.yaml}
PYTHON=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
export SPACE PYTHON
[[ -x $PYTHON ]] || { echo "no $PYTHON: run make .venv/installed, or set PYTHON" >&2; exit 2; }

PATH=$PATH:/usr/sbin
missing=
for program in slurmctld slurmd sbatch munged; do command -v "$program" >/dev/null || missing=yes; done
if [[ -n $missing ]]; then
    sudo=()
    if ((EUID)); then sudo=(sudo); fi
    echo "installing slurm-wlm and munge"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi

# ---- A Slurm of its own -----------------------------------------------------------------------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/try-slurm-XXXXXX")
daemons=()
end() {
    local status=$?
    trap - EXIT
    scancel --quiet --full "${jobs[@]}" 2>/dev/null || true
    for ((i = 0; i < 40; i++)); do
        [[ -n $(squeue --noheader 2>/dev/null) ]] || break
        sleep 0.5
    done
    for daemon in "${daemons[@]}"; do kill "$daemon" 2>/dev/null || true; done
    wait
    if ((status)); then
        echo "FAILED; its logs are in $work" >&2
    else
        rm -rf "$work"
    fi
    exit "$status"
}
jobs=()
trap end EXIT
trap 'exit 130' INT TERM

mapfile -t ports < <("$PYTHON" -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(s.getsockname()[1] for s in held), sep="\n")')
host=$(hostname -s)
# Two nodes of one core, whatever the machine has: with more, the sweep would be over before it is disturbed.
cat >"$work/slurm.conf" <<CONF
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=20
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
KillWait=5
FirstJobId=$((10000 + RANDOM))
NodeName=one NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=1
NodeName=two NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=1
PartitionName=try Nodes=one,two Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf
mkdir -m 700 "$work/state" "$work/spool-one" "$work/spool-two"
(umask 077 && head -c 1024 /dev/urandom >"$work/munge.key")
munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
    --log-file="$work/munged.log" --seed-file="$work/munged.seed" 2>"$work/munged.err" &
daemons+=($!)
for ((i = 0; i < 100; i++)); do
    if [[ -S $work/munge.socket ]]; then break; fi
    sleep 0.1
done
slurmctld -D 2>"$work/slurmctld.err" &
daemons+=($!)
for node in one two; do
    slurmd -D -N "$node" 2>"$work/slurmd-$node.err" &
    daemons+=($!)
done
for ((i = 0; i < 300; i++)); do
    if [[ $(sinfo --noheader --states=idle --format=%D 2>/dev/null) == 2 ]]; then break; fi
    sleep 0.1
done
sinfo

# ---- The sweep as a job -----------------------------------------------------------------------------------------------

runs=$work/runs
submit() { # NAME, arguments of run_sweep.py; the job's number is the last of jobs
    local name=$1
    shift
    jobs+=("$(sbatch --parsable --nodes=2 --cpus-per-task=1 --output="$work/$name.log" \
        cluster/slurm.sbatch "$@" --output "$runs" --name "$name")")
}
field() { scontrol --oneliner show job "${jobs[-1]}" | tr ' ' '\n' | sed -n "s/^$1=//p"; }
holds() { # say what is checked, and fail unless it is so
    echo "  $1"
    shift
    "$@" || { echo "does not hold: $*" >&2; tail -n 30 "$runs/../"*.log >&2; exit 1; }
}
count() { find "$runs/slurm" -path "$1" 2>/dev/null | wc -l; }
in_the_middle() { # wait until $1 trials have finished and another is at work
    local trial
    while :; do
        [[ $(field JobState) =~ ^(PENDING|RUNNING|CONFIGURING|COMPLETING|REQUEUED)$ ]] || { cat "$work/slurm.log" >&2; exit 1; }
        if (($(count '*/result.json') >= $1)); then
            for trial in "$runs"/slurm/*/attempt.json; do
                [[ -f ${trial%/*}/result.json ]] || { sleep 1; return; }
            done
        fi
        sleep 0.2
    done
}
state() { [[ $(field JobState) =~ ^($1)$ ]]; }
FINAL='COMPLETED|FAILED|CANCELLED|NODE_FAIL|TIMEOUT'
wait_on() { # sleep a little, unless the job has ended
    if state "$FINAL"; then cat "$work"/*.log >&2; exit 1; fi
    sleep 0.5
}
until_state() { until state "$1"; do wait_on; done; }
run_again() { until [[ $(field Restarts) == "$1" ]] && state RUNNING; do wait_on; done; } # for the ($1 + 1)th time

echo "a job with a setting that does not exist"
submit refused "$SPACE" --set alhpa=1
until_state FAILED
holds "its exit status is run_sweep.py's" [ "$(field ExitCode)" = 2:0 ]
holds "it leaves nothing behind" [ -z "$(compgen -G "/tmp/ray-${jobs[-1]}-*")" ]

echo "$SPACE as a job"
submit slurm "$SPACE"
in_the_middle 2
echo "its time limit is near (the signal of --signal)"
scancel --batch --signal=USR1 "${jobs[-1]}"
run_again 1
holds "trials saved checkpoints" test "$(count '*/checkpoints/*.json')" -gt 0
holds "it said so" grep -q 'the time limit is near' "$work/slurm.log"
finished=$(count '*/result.json')
in_the_middle $((finished + 2))
echo "killed in the middle, and requeued"
scontrol requeue "${jobs[-1]}"
run_again 2
until_state "$FINAL"
cat "$work/slurm.log"
holds "it ends well" [ "$(field JobState) $(field ExitCode)" = "COMPLETED 0:0" ]
holds "Ray had both nodes, each time" [ "$(grep -c 'Ray runs on 2 of 2 nodes' "$work/slurm.log")" = 3 ]
holds "it went on with what was there, twice" [ "$(grep -c ' finished before, ' "$work/slurm.log")" = 2 ]

echo "the same sweep, undisturbed and without Slurm"
env -u SLURM_CONF "$PYTHON" run_sweep.py "$SPACE" --output "$runs" --name undisturbed >"$work/undisturbed.log" 2>&1 || {
    tail -n 30 "$work/undisturbed.log" >&2
    exit 1
}
"$PYTHON" - "$runs/slurm/results.csv" "$runs/undisturbed/results.csv" <<'END'
import csv, sys

TIMES = {"wall_s", "pretrain/images_per_s", "attempts"}  # all that may differ
there, here = (list(csv.DictReader(open(path, newline=""))) for path in sys.argv[1:])
for one, other in zip(there, here, strict=True):
    assert one.keys() == other.keys()
    for name in one.keys() - TIMES:
        assert one[name] == other[name], f"{one['trial']}: {name}: {one[name]} on Slurm, {other[name]} here"
again = [row["trial"] for row in there if int(row["attempts"]) > 1]
assert again and all(row["status"] == "finished" for row in there)
print(f"  {len(there)} trials, {len(again)} of them cut off and gone on with, have equal results in all columns but {', '.join(sorted(TIMES))}")
END
echo "everything holds"
