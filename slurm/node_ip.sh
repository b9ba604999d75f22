#!/usr/bin/env bash
# Prints this node's address on NFT_INTERFACE, or the one that its name resolves to.
set -euo pipefail
if [[ -n ${NFT_INTERFACE:-} ]]; then
    address=$(ip -4 -o addr show dev "$NFT_INTERFACE" 2>/dev/null | awk '{sub("/.*", "", $4); print $4; exit}') || true
    [[ -n $address ]] || {
        there=$(ip -4 -o addr | awk '$2 != "lo" {printf "%s%s (%s)", n++ ? ", " : "", $2, $4}') || there="no \`ip\` to tell"
        echo "NFT_INTERFACE=$NFT_INTERFACE is no interface with an IPv4 address on $(hostname); there: ${there:-none};" \
            "set it in slurm/site.env, or leave it empty" >&2
        exit 2
    }
else
    address=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127\./ {print $1; exit}') || true
    [[ -n $address ]] || {
        echo "$(hostname) resolves to no address but 127.*; set NFT_INTERFACE in slurm/site.env" >&2; exit 2; }
fi
echo "$address"
