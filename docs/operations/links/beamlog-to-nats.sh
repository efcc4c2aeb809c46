#!/usr/bin/env bash
# Moves streams and buckets from a Beamlog node to a NATS cluster:
#
#   beamlog-to-nats.sh begin STREAM… [--bucket BUCKET…]     copies, and goes on copying; clients stay where they are
#   beamlog-to-nats.sh finish                               when writers have stopped: the rest, and the link goes
#
# A stream that the cluster does not have is made there with the same settings. Nothing is removed from the node.
# The variables are those of nats-to-beamlog.sh.
set -euo pipefail
beamlog="${BEAMLOG:-beamlog}"
link=migrate-out

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
        for stream in "${streams[@]}"; do
            if ! "$beamlog" stream info "$stream" --server "$NATS_URL" >/dev/null 2>&1; then
                settings="$("$beamlog" stream info "$stream" -o json |
                    python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["config"]))')"
                "$beamlog" stream add "$stream" --server "$NATS_URL" --from-file <(printf '%s' "$settings") >/dev/null
                echo "made stream $stream there"
            fi
            rules+=(--export "stream=$stream")
        done
        for bucket in "${buckets[@]}"; do rules+=(--export "bucket=$bucket"); done
        # shellcheck disable=SC2086 # several options in one variable
        "$beamlog" link add "$link" --url "$NATS_URL" ${LINK_OPTIONS:-} "${rules[@]}"
        ;;
    finish)
        until "$beamlog" link diff "$link" >/dev/null 2>&1; do sleep 1; done
        "$beamlog" link diff "$link"
        "$beamlog" link rm "$link"
        echo "done: point the clients to the cluster"
        ;;
    *) echo "begin or finish, not $step" >&2; exit 2 ;;
esac
