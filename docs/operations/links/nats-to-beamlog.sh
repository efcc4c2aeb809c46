#!/usr/bin/env bash
# Moves streams and buckets from a NATS cluster to a Beamlog node, in two steps:
#
#   nats-to-beamlog.sh begin STREAM… [--bucket BUCKET…]     copies, and goes on copying; clients stay where they are
#   nats-to-beamlog.sh finish STREAM… [--bucket BUCKET…]    when writers have stopped: the rest, the reading
#                                                          positions of durable consumers, and the link goes
#
# Messages keep their sequence. Nothing is removed from the cluster.
# NATS_URL      the cluster                        BEAMLOG        the program (default: beamlog)
# BEAMLOG_URL   the node, as NATS clients see it   BEAMLOG_ADMIN  its admin address
# LINK_OPTIONS  credentials for the cluster, as `beamlog link add` takes them
set -euo pipefail
beamlog="${BEAMLOG:-beamlog}"
link=migrate-in

step="${1:?begin or finish}"
shift
streams=() buckets=()
is_bucket=no
for name in "$@"; do
    case "$name" in
        --bucket) is_bucket=yes ;;
        *) if [ "$is_bucket" = yes ]; then buckets+=("$name"); else streams+=("$name"); fi ;;
    esac
done

case "$step" in
    begin)
        rules=()
        for stream in "${streams[@]}"; do rules+=(--import "stream=$stream,keep_sequence=true"); done
        for bucket in "${buckets[@]}"; do rules+=(--import "bucket=$bucket"); done
        # shellcheck disable=SC2086 # several options in one variable
        "$beamlog" link add "$link" --url "$NATS_URL" ${LINK_OPTIONS:-} "${rules[@]}"
        ;;
    finish)
        # Exit code 0 means that nothing is missing here any more.
        until "$beamlog" link diff "$link" >/dev/null 2>&1; do sleep 1; done
        "$beamlog" link diff "$link"
        "$beamlog" link rm "$link"
        for stream in "${streams[@]}"; do
            "$beamlog" consumer ls "$stream" --server "$NATS_URL" -o json |
                python3 -c '
import json, sys
for consumer in json.load(sys.stdin):
    config = consumer["config"]
    if not config.get("durable_name") or config["durable_name"].startswith("beamlog-"):
        continue
    # What was acked stays acked; what was not is delivered again.
    config["deliver_policy"] = "by_start_sequence"
    config["opt_start_seq"] = consumer["ack_floor"]["stream_seq"] + 1
    for key in ("opt_start_time", "num_replicas"):
        config.pop(key, None)
    print(config["durable_name"], json.dumps(config), sep="\t")
' | while IFS=$'\t' read -r consumer config; do
                "$beamlog" consumer add "$stream" "$consumer" --from-file <(printf '%s' "$config") >/dev/null
                echo "consumer $consumer of $stream goes on where it was"
            done
        done
        echo "done: point the clients to the node"
        ;;
    *) echo "begin or finish, not $step" >&2; exit 2 ;;
esac
