#!/usr/bin/env bash
# One node's Ray, until common.sh makes the file $NFT_LOG/end: the head on the job's first node, a worker on the others.
set -euo pipefail
node=$SLURMD_NODENAME logs=${NFT_LOG:?}/$SLURMD_NODENAME
ip=$(slurm/node_ip.sh)
mkdir -p "$logs" "${NFT_RAY_DIR:?}"
options=(--node-ip-address="$ip" --node-name="$node" --num-cpus="${NFT_CPUS:?}" --num-gpus="${NFT_GPUS:?}"
    --object-store-memory="${NFT_OBJECT_STORE_BYTES:-4294967296}" --temp-dir="$NFT_RAY_DIR" --include-log-monitor=false
    --disable-usage-stats --block)

finish() {
    trap - EXIT TERM INT
    if [[ -n ${raylet:-} ]]; then
        kill -s TERM "$raylet" 2>/dev/null || true
        for ((i = 0; i < 50; i++)); do kill -0 "$raylet" 2>/dev/null || break; sleep 0.1; done
        kill -s KILL "$raylet" 2>/dev/null || true # what is left, Slurm ends with the step
    fi
    cp -r "$NFT_RAY_DIR"/session_latest/logs/. "$logs"/ 2>/dev/null || true
    rm -rf "$NFT_RAY_DIR"
}
trap finish EXIT
trap 'exit 0' TERM INT

if ((SLURM_PROCID == 0)); then
    options+=(--head --port="${RAY_ADDRESS##*:}" --include-dashboard=false)
else
    deadline=$((SECONDS + ${NFT_RAY_TIMEOUT_S:-300}))
    until (exec 3<>"/dev/tcp/${RAY_ADDRESS%:*}/${RAY_ADDRESS##*:}") 2>/dev/null; do
        ((SECONDS < deadline)) || { echo "$node: no Ray head at $RAY_ADDRESS within ${NFT_RAY_TIMEOUT_S:-300} s" >&2; exit 1; }
        sleep 0.5
    done
    options+=(--address="$RAY_ADDRESS")
fi
echo "$node: ray start ${options[*]}"
env -u RAY_ADDRESS ray start "${options[@]}" >"$logs/ray_start.log" 2>&1 &
raylet=$!
while [[ ! -e $NFT_LOG/end ]]; do
    kill -0 "$raylet" 2>/dev/null || { echo "$node: Ray has ended; see $logs/ray_start.log" >&2; exit 1; }
    sleep 1
done
