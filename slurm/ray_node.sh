#!/usr/bin/env bash
# One node's Ray, until common.sh makes the file $NFT_LOG/end: the head on the job's first node, a worker on the others.
set -euo pipefail
node=$SLURMD_NODENAME logs=${NFT_LOG:?}/$SLURMD_NODENAME
die() { echo "$node: error: $*" >&2; exit 1; } # preflight looks for such lines in ray.log
ip=$(slurm/node_ip.sh 2>&1) || die "$ip"
mkdir -p "$logs" || die "can't make $logs; NFT_RUNS in slurm/site.env must be a folder that all nodes see and may write to"
# shellcheck disable=SC2174
if ! mkdir -p -m 700 "${NFT_RAY_DIR:?}" || [[ ! -O $NFT_RAY_DIR ]]; then # not somebody else's, who could change what is in it
    die "can't make $NFT_RAY_DIR; set NFT_LOCAL_DIR in slurm/site.env to a folder on each node's disk"
fi
options=(--node-ip-address="$ip" --node-name="$node" --num-cpus="${NFT_CPUS:?}" --num-gpus="${NFT_GPUS:?}"
    --object-store-memory="${NFT_OBJECT_STORE_BYTES:-4294967296}" --temp-dir="$NFT_RAY_DIR" --include-log-monitor=false
    --disable-usage-stats --block)
children_of() { # PID: and theirs
    local child
    for child in $(pgrep -P "$1"); do echo "$child"; children_of "$child"; done
}
is_any_alive() {
    local pid
    for pid in "$@"; do if kill -0 "$pid" 2>/dev/null; then return 0; fi; done
    return 1
}
finish() {
    trap - EXIT TERM INT
    if [[ -n ${raylet:-} ]]; then
        local own=("$raylet")
        mapfile -t -O 1 own < <(children_of "$raylet")
        kill -s TERM "$raylet" 2>/dev/null || true
        for ((i = 0; i < 50; i++)); do is_any_alive "${own[@]}" || break; sleep 0.1; done
        # Ray's agents may outlive it, and not every Slurm ends what has lost its parent
        kill -s KILL "${own[@]}" 2>/dev/null || true
    fi
    cp -r "$NFT_RAY_DIR"/session_latest/logs/. "$logs"/ 2>/dev/null || true
    rm -rf "$NFT_RAY_DIR"
}
trap finish EXIT
trap 'exit 0' TERM INT

deadline=$((SECONDS + ${NFT_RAY_TIMEOUT_S:-300}))
wait_for() { # WHAT COMMAND...: polls until the command succeeds
    local what=$1
    shift
    until "$@"; do
        [[ ! -e $NFT_LOG/end ]] || exit 0
        ((SECONDS < deadline)) || die "no $what within ${NFT_RAY_TIMEOUT_S:-300} s"
        sleep 0.5
    done
}
head_answers() { (exec 3<>"/dev/tcp/${RAY_ADDRESS%:*}/$port") 2>/dev/null; }
has_joined() { grep -q "Ray runtime started" "$logs/ray_start.log"; }

port=${RAY_ADDRESS##*:} at_once=${NFT_RAY_AT_ONCE:-64}
if ((SLURM_PROCID == 0)); then
    options+=(--head --port="$port" --include-dashboard=false)
else
    options+=(--address="$RAY_ADDRESS")
    wait_for "Ray head at $RAY_ADDRESS" head_answers
    # Ray's own programs must start within 15 s, and a file system on which too many nodes do so at once is slow.
    before=$((SLURM_PROCID - at_once))
    if ((before >= 0)); then wait_for "Ray on the node that comes $at_once before" test -e "$NFT_LOG/joined.$before"; fi
fi
echo "$node: ray start ${options[*]}"
while :; do
    env -u RAY_ADDRESS ray start "${options[@]}" >"$logs/ray_start.log" 2>&1 &
    raylet=$!
    until has_joined || ! kill -0 "$raylet" 2>/dev/null || [[ -e $NFT_LOG/end ]]; do sleep 0.5; done
    if has_joined; then break; fi
    if ((SLURM_PROCID == 0 || SECONDS >= deadline)) || [[ -e $NFT_LOG/end ]]; then break; fi
    cp "$logs/ray_start.log" "$logs/ray_start.$SECONDS.log"
    echo "$node: Ray did not come up; trying again" >&2
done
if has_joined; then touch "$NFT_LOG/joined.$SLURM_PROCID"; fi
while [[ ! -e $NFT_LOG/end ]]; do
    kill -0 "$raylet" 2>/dev/null || die "Ray has ended; see $logs/ray_start.log"
    sleep 1
done
