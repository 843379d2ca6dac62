#!/bin/bash
# A SLURM of two nodes on this machine, for tests: `slurm.sh start FOLDER` writes its configuration into FOLDER and
# starts munge, slurmctld and two slurmd (as root); `slurm.sh stop FOLDER` ends these and nothing else.
# `export SLURM_CONF=FOLDER/slurm.conf` lets sbatch and friends find it.
set -eu
action=$1 folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf

write_configuration() {
    # Ports that nobody else is likely to have; each node its own, so that both live on one address.
    cat > "$SLURM_CONF" <<CONF
ClusterName=weakseg
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=17817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=1
SchedulerTimeSlice=5
MessageTimeout=30
InactiveLimit=0
KillWait=20
MinJobAge=3600
SlurmdTimeout=15
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname=$(hostname -s) Port=17818 CPUs=2 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname=$(hostname -s) Port=17819 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=60 PriorityTier=1 GraceTime=60 LLN=YES State=UP
PartitionName=high Nodes=n1,n2 MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
CONF
}

start() {
    mkdir -p "$folder/state"
    chmod 755 "$folder"
    write_configuration
    [ -f "$folder/munge.key" ] || dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    slurmctld
    for node in n1 n2; do slurmd -N "$node"; done
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --Node --partition=low --states=idle --format=%N 2> /dev/null | wc -l)" = 2 ] && return
        sleep 0.5
    done
    sinfo >&2
    tail -n 5 "$folder"/*.log >&2
    exit 1
}

stop() {
    scancel --state=PENDING --state=RUNNING --user="$(id -un)" 2> /dev/null || true
    for name in slurmd-n1 slurmd-n2 slurmctld munged; do
        [ -f "$folder/$name.pid" ] || continue
        pid=$(cat "$folder/$name.pid")
        kill "$pid" 2> /dev/null || continue
        for _ in $(seq 100); do kill -0 "$pid" 2> /dev/null || break; sleep 0.1; done  # its port is free then
    done
}

"$action"
