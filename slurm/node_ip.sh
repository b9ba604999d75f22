#!/usr/bin/env bash
# Prints this node's address on NFT_INTERFACE, or the one that its name resolves to.
set -euo pipefail
if [[ -n ${NFT_INTERFACE:-} ]]; then
    address=$(ip -4 -o addr show dev "$NFT_INTERFACE" | awk '{sub("/.*", "", $4); print $4; exit}')
    [[ -n $address ]] || {
        echo "NFT_INTERFACE=$NFT_INTERFACE has no IPv4 address on $(hostname); choose one of: $(ip -br -4 addr)" >&2; exit 2; }
else
    address=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127\./ {print $1; exit}')
    [[ -n $address ]] || {
        echo "$(hostname) resolves to no address but 127.*; set NFT_INTERFACE in slurm/site.env" >&2; exit 2; }
fi
echo "$address"
