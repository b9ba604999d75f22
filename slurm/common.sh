# shellcheck shell=bash
# What the jobs share; sourced by the *.sbatch. Reads slurm/site.env, starts Ray on the allocation, runs a program on its
# first node, forwards Slurm's warning to it, and requeues the job if the program asks for that (attempts.sh says how often).
# Ends only what it started.

# shellcheck source=slurm/attempts.sh
source "$(dirname "${BASH_SOURCE[0]}")/attempts.sh"

say() { echo "$(date +%T) $*"; }
die() { echo "error: $*" >&2; exit 2; }

# load_site: the site's facts, checked; a log folder of this attempt.
load_site() {
    local site=${NFT_SITE:-slurm/site.env}
    [[ -r $site ]] || die "no $site in $PWD; cp slurm/site.env.example slurm/site.env, fill it in, submit from the repository"
    export USER=${USER:-$(id -un)} # for $site
    set -a # all that it sets is for the programs: NFT_..., NCCL_..., caches
    # shellcheck source=slurm/site.env.example
    source "$site"
    set +a
    : "${NFT_HOME:?is not set in $site: the folder of the repository, on a file system that all nodes see}"
    : "${NFT_RUNS:?is not set in $site: a folder for runs and logs, on a file system that all nodes see}"
    : "${NFT_LOCAL_DIR:?is not set in $site: a folder on each node\'s own disk, such as /tmp}"
    if [[ -z ${NFT_CONTAINER:-} ]]; then
        : "${NFT_VENV:?is not set in $site, nor is NFT_CONTAINER: the virtual environment that all nodes see}"
        [[ -x $NFT_VENV/bin/python ]] || die "NFT_VENV=$NFT_VENV in $site has no bin/python; make it as slurm/README.md, 1, says"
    fi
    [[ -d $NFT_HOME/megatron_nft ]] || die "NFT_HOME=$NFT_HOME in $site is not the repository: it has no megatron_nft/"
    if [[ -n ${NFT_UMASK:-} ]]; then
        [[ $NFT_UMASK =~ ^0?[0-7]{3}$ ]] || die "NFT_UMASK=$NFT_UMASK in $site is no mask of permissions; set it to 077 or 027, say"
        umask "$NFT_UMASK"
    fi
    cd "$NFT_HOME" || exit

    NFT_ATTEMPT=${SLURM_RESTART_COUNT:-0}
    NFT_JOB_LOG=$NFT_RUNS/slurm/$SLURM_JOB_ID
    NFT_LOG=$NFT_JOB_LOG/attempt_$NFT_ATTEMPT
    NFT_CPUS=${NFT_CPUS_PER_NODE:-${SLURM_CPUS_ON_NODE:?is what Slurm sets; submit this with sbatch}}
    NFT_GPUS=${NFT_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
    NFT_RAY_DIR=$NFT_LOCAL_DIR/nft_$SLURM_JOB_ID.$NFT_ATTEMPT
    export NFT_ATTEMPT NFT_LOG NFT_CPUS NFT_GPUS NFT_RAY_DIR NFT_RAY_PORT=$((20000 + SLURM_JOB_ID % 10000))
    check_sockets "$site"
    mkdir -p "$NFT_LOG" || die "can't make $NFT_LOG; set NFT_RUNS in $site to a folder that this user may write to"
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    say "job $SLURM_JOB_ID, attempt $NFT_ATTEMPT, ${#nodes[@]} nodes: $SLURM_JOB_NODELIST; logs in $NFT_LOG"
}

# check_sockets SITE: a socket's path has 107 bytes at most, and Ray puts its own deep below NFT_LOCAL_DIR.
check_sockets() {
    local LC_ALL=C longest=$NFT_RAY_DIR/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store
    ((${#longest} <= 107)) ||
        die "NFT_LOCAL_DIR=$NFT_LOCAL_DIR in $1 is $((${#longest} - 107)) characters too long: Ray's sockets would lie at" \
            "$longest, and a socket's path has 107 at most; set it to a shorter one, such as /tmp, or a link to it"
}

# on_nodes SRUN_OPTION... -- COMMAND...: in the site's environment; becomes srun, so that its pid is the caller's to signal.
on_nodes() {
    local options=()
    while [[ $1 != -- ]]; do options+=("$1"); shift; done
    shift
    if [[ -n ${NFT_CONTAINER:-} ]]; then
        options+=("--container-image=$NFT_CONTAINER" "--container-mounts=${NFT_MOUNTS:-$NFT_HOME,$NFT_RUNS,$NFT_LOCAL_DIR}")
    fi
    exec srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none --overlap --kill-on-bad-exit=0 \
        "${options[@]}" "$NFT_HOME/slurm/node.sh" "$@"
}

# run_on_head NAME COMMAND...: on the first node; output to this job's and to NAME.log. SIGUSR1 and SIGTERM are passed on.
run_on_head() {
    local name=$1 status=0
    shift
    export NFT_PID_FILE=$NFT_LOG/$name.pid
    (on_nodes --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" -- "$@") > >(tee -a "$NFT_LOG/$name.log") 2>&1 &
    program=$!
    while :; do
        status=0
        wait "$program" || status=$?
        kill -0 "$program" 2>/dev/null || break # else a trap has ended the wait
    done
    program=
    return "$status"
}

program='' ray='' warned='' ended='' phase=''
on_signal() {
    if [[ $1 == USR1 && $phase == preflight ]]; then # which has nothing to save
        say "SIGUSR1: the time is nearly up: no training will begin in this attempt"
        return 0 # a bare return in a trap returns what was before it: the interrupted wait, and set -e ends the job
    fi
    say "SIG$1: $2"
    [[ -n $program ]] || exit 130
    # This script runs on the first node, too. Through srun the signal would reach the program's children as well.
    kill -s "$1" "$(<"$NFT_PID_FILE")" 2>/dev/null || true
}
trap 'warned=1; on_signal USR1 "the time is nearly up: saving, to go on in the next attempt"' USR1
trap 'ended=1; on_signal TERM "ending, with a checkpoint if there is time"' TERM

# start_ray: a head on the first node, a worker on each other; RAY_ADDRESS. Who has joined is preflight's to see.
# Only those who can read the token can call it: without one, whoever reaches its ports runs code as this user.
start_ray() {
    local ip why=
    ip=$(on_nodes --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" -- slurm/node_ip.sh) || {
        if [[ -n ${NFT_CONTAINER:-} ]] && ! srun --help | grep -q -e --container-image; then
            why="; NFT_CONTAINER needs pyxis, and srun has no --container-image here: set NFT_VENV instead"
        fi
        die "no address of ${nodes[0]}, for Ray$why"
    }
    unset RAY_AUTH_TOKEN # would come before the file's
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$NFT_LOG/ray_token
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH") || die "can't write $RAY_AUTH_TOKEN_PATH"
    export RAY_ADDRESS=$ip:$NFT_RAY_PORT
    (on_nodes --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" -- slurm/ray_node.sh) >"$NFT_LOG/ray.log" 2>&1 &
    ray=$!
    trap stop_ray EXIT
    say "Ray is starting at $RAY_ADDRESS"
}

# stop_ray: each ray_node.sh ends its own, and keeps its logs; what has not ended then, srun ends with the step.
stop_ray() {
    local deadline=$((SECONDS + 30))
    [[ -n $ray ]] || return 0
    touch "$NFT_LOG/end" # on SIGTERM srun would kill at once
    while kill -0 "$ray" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.5; done
    kill -s TERM "$ray" 2>/dev/null || true
    wait "$ray" 2>/dev/null || true
    rm -f "${RAY_AUTH_TOKEN_PATH:-}"
    ray=
}

# drive RECIPE SETTING...: the driver; again in this job, on the same Ray, if somebody kills it (the node's memory, say). A
# process of a run that dies is the driver's own to start again.
drive() {
    local status again settings=("$@")
    for again in 1 2 3 0; do
        if [[ -e $NFT_JOB_LOG/begun ]]; then settings=("$@" run.overwrite=false); fi # what this job has begun anew goes on
        touch "$NFT_JOB_LOG/begun"
        status=0
        run_on_head driver python -u -m "${NFT_DRIVER:-megatron_nft.train}" "${settings[@]}" || status=$?
        if ((again == 0 || status <= 128 || status == 130)) || [[ -n $warned$ended ]]; then break; fi
        say "the driver was killed (exit status $status): starting it again, from the last checkpoint ($again of 3)"
    done
    return "$status"
}

# last_of SETTING [section.key=value ...]: its value, as the driver takes it: the last one counts, blanks around a name don't.
last_of() {
    local name=$1 value='' setting
    shift
    for setting in "$@"; do
        if [[ ${setting//[[:space:]]/} == "$name="* ]]; then value=${setting#*=}; fi
    done
    echo "$value"
}

# train RECIPE [section.key=value ...]: Ray, preflight, training; the job is requeued if training asks for it.
train() {
    local recipe=$1 status=0
    shift
    local settings=("run.dir=$NFT_RUNS" run.overwrite=false "$@")
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        [[ $(last_of run.name "$@") == *%a* ]] ||
            die "task $SLURM_ARRAY_TASK_ID of a job array: all of them would write to one run; name each one's:" \
                "run.name=mine_%a (%a is the task's number in any setting, such as run.seed=%a)"
        settings=("${settings[@]//%a/$SLURM_ARRAY_TASK_ID}")
    fi
    check_warning
    phase=preflight
    start_ray
    run_on_head preflight python -m megatron_nft.preflight "$recipe" "${settings[@]}" \
        --nodes "$(IFS=,; echo "${nodes[*]}")" --wait "${NFT_RAY_TIMEOUT_S:-300}" --pins "${NFT_PINS:-fail}" \
        --within "${NFT_GB_S_WITHIN:-0}" --between "${NFT_GB_S_BETWEEN:-0}" || status=$?
    if ((status == 0)) && [[ -z ${NFT_PREFLIGHT_ONLY:-} ]]; then
        begin_attempt || status=$?
        if ((status == 0)); then
            phase=driver
            drive "$recipe" "${settings[@]}" || status=$?
        fi
    fi
    stop_ray
    end_job "$status"
}

# end_job STATUS: 75 asks for another attempt; so does an end by the warning itself, in which nothing could be saved yet.
# A job that was asked to end is CANCELLED, not FAILED; one that Slurm is ending already, or will requeue, is left to it.
end_job() {
    if [[ -n $ended && -z $warned ]] && (($1 != 0)); then
        say "ended: the same sbatch goes on from the last checkpoint"
        trap '' TERM
        if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then scancel "$SLURM_JOB_ID"; fi
        exit "$1"
    fi
    if [[ $phase != preflight ]] && { (($1 == 75)) || { [[ -n $warned ]] && (($1 != 0)); }; } && may_requeue; then
        say "requeued: the next attempt goes on from the last checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
        exit 0
    fi
    if (($1 == 0)); then say "done"; else say "FAILED with exit status $1; logs in $NFT_LOG"; fi
    exit "$1"
}
