#!/usr/bin/env bash
# A private Slurm of one node for the tests, on the loopback alone: bash tests/slurm/private.sh start|stop|env
#
# `env` prints `export SLURM_CONF=...`. Everything lies in SLURM_LOCAL_DIR (default: /tmp/apts-slurm-UID), which stop empties
# but for its logs. Slurm is Debian's; start installs it where that needs no question. The processors are declared, not real.
set -euo pipefail
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
. "$(dirname -- "${BASH_SOURCE[0]}")/../../jobs/environment.sh"
dir=${SLURM_LOCAL_DIR:-/tmp/apts-slurm-$(id -u)}
conf=$dir/slurm.conf host=$(uname -n) cpus=8
packages="slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libpmix-dev" # Slurm opens libpmix.so, which -dev has

installed() { command -v slurmctld slurmd munged sbatch >/dev/null && compgen -G "/usr/lib/*/pmix*/lib/libpmix.so" >/dev/null; }

install_slurm() { # without the daemons that the packages would start
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null && as_root chmod 755 $policy && made=1; fi
    as_root sh -c "(apt-get update -q;DEBIAN_FRONTEND=noninteractive timeout 120 apt-get install -q -y --no-install-recommends $packages)" \
        >"$dir/apt.log" 2>&1 || true
    [ -z "$made" ] || as_root rm -f $policy
    installed || fail "Slurm cannot be installed, see $dir/apt.log. Type: apt-get install $packages"
}

born() { # born PID: when it started, so that another process of the same number is never taken for it
    local line; line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    line=${line##*) }; set -- $line; [ "$1" != Z ] && echo "${20}"
}

alive() { local pid start; [ -e "$dir/$1.pid" ] && read -r pid start <"$dir/$1.pid" && [ "$(born "$pid")" = "$start" ]; }

daemon() { # daemon NAME COMMAND...: in a session of its own
    local name=$1; shift
    setsid "$@" </dev/null >>"$dir/$name.out" 2>&1 &
    echo "$! $(born $!)" >"$dir/$name.pid"
}

end() { # end NAME: ask, wait, kill
    local pid _
    if alive "$1"; then
        read -r pid _ <"$dir/$1.pid"
        kill "$pid"
        for _ in $(seq 50); do alive "$1" || break; sleep 0.1; done
        ! alive "$1" || kill -KILL "$pid"
    fi
    rm -f -- "$dir/$1.pid"
}

free_ports() { # the first of two ports that nobody listens on
    local port
    for port in $(seq 16817 2 20000); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || (exec 3<>"/dev/tcp/127.0.0.1/$((port + 1))") 2>/dev/null ||
            { echo "$port"; return; }
    done
}

configure() {
    local port; port=$(free_ports)
    mkdir -p "$dir/state" "$dir/spool"
    (umask 077; head -c 1024 /dev/urandom >"$dir/munge.key")
    cat >"$conf" <<CONF
ClusterName=apts
# Numbers that never came before: MPICH names shared memory by job and step, and fails on what a killed job left under that name.
FirstJobId=$((1000000 + $(date +%s) % 60000000))
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire before it starts again; 120 s unless said.
AuthInfo=socket=$dir/munge.sock,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.own
SlurmdPidFile=$dir/slurmd.own
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
# No cgroups and no pinning: containers, and more ranks than cores.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
# The scripts choose the PMI themselves; with this default a script that forgets fails.
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=600
MailProg=/bin/true
PlugStackConfig=/dev/null
PropagateResourceLimitsExcept=MEMLOCK
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=$cpus State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
CONF
    printf 'CgroupAutomount=no\n' >"$dir/cgroup.conf"
    : >"$dir/mpi.conf"
}

start() {
    case $(getent ahostsv4 "$host" | head -n 1) in 127.*) ;; *) fail "$host is not 127.* in /etc/hosts: Slurm would listen outside" ;; esac
    [ ${#dir} -le 70 ] || fail "SLURM_LOCAL_DIR is too long for a socket: $dir"
    mkdir -p "$dir" && chmod 755 "$dir" && cd -- "$dir" # a daemon's own folder must stay
    installed || install_slurm
    ! alive slurmctld || fail "a Slurm already runs in $dir"
    configure
    export SLURM_CONF=$conf
    daemon munged munged -F --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.own" \
        --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
    for _ in $(seq 100); do ! munge -n -S "$dir/munge.sock" >/dev/null 2>&1 || break; sleep 0.1; done
    daemon slurmctld slurmctld -D -f "$conf"
    daemon slurmd slurmd -D -f "$conf" -N "$host"
    for _ in $(seq 120); do
        [ "$(timeout 5 sinfo -h -o %T 2>/dev/null)" != idle ] || return 0
        sleep 0.5
    done
    tail -n 5 -- "$dir"/*.log "$dir"/*.out >&2
    stop
    fail "the node did not come up within 60 s, see $dir"
}

stop() {
    export SLURM_CONF=$conf
    if alive slurmctld && timeout 10 scancel --user="$(id -un)" 2>/dev/null; then
        for _ in $(seq 20); do [ -n "$(timeout 5 squeue -h -t R,CG 2>/dev/null)" ] || break; sleep 0.5; done
    fi
    for name in slurmd slurmctld munged; do end $name; done
    rm -rf -- "$dir/state" "$dir/spool" "$dir/munge.key" "$dir/munge.sock"*
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    env) echo "export SLURM_CONF=$conf" ;;
    *) echo "usage: bash tests/slurm/private.sh start|stop|env" >&2; exit 2 ;;
esac
