#!/usr/bin/env bash
# Goes back to the NATS cluster after nats-to-beamlog.sh: what clients have written to the node since is brought to the
# cluster, once, and nothing of what came from there is sent back.
#
#   roll-back.sh STREAM… [--bucket BUCKET…]     when writers have stopped writing to the node
#
# The variables are those of nats-to-beamlog.sh. Reading positions are those that the cluster has; a consumer that went
# on at the node gets what it read there again.
set -euo pipefail
beamlog="${BEAMLOG:-beamlog}"
link=roll-back

# A migration that was not finished must not go on.
if "$beamlog" link status migrate-in >/dev/null 2>&1; then "$beamlog" link rm migrate-in; fi
rules=()
is_bucket=no
for name in "$@"; do
    case "$name" in
        --bucket) is_bucket=yes ;;
        *) if [ "$is_bucket" = yes ]; then rules+=(--export "bucket=$name"); else rules+=(--export "stream=$name"); fi ;;
    esac
done
# shellcheck disable=SC2086 # several options in one variable
"$beamlog" link add "$link" --url "$NATS_URL" ${LINK_OPTIONS:-} "${rules[@]}"
until "$beamlog" link diff "$link" >/dev/null 2>&1; do sleep 1; done
"$beamlog" link diff "$link"
"$beamlog" link rm "$link"
echo "done: point the clients to the cluster"
