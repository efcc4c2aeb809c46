#!/usr/bin/env bash
# Runs a Beamlog node beside a NATS cluster, for as long as you like: clients of either side reach the other.
#
#   side-by-side.sh begin
#   side-by-side.sh end
#
# What goes where is decided once, so that nothing goes round. Each list may be empty; names are separated by blanks.
# FROM_NATS     streams that the cluster's clients write       FROM_BEAMLOG   streams that the node's clients write
# BUCKETS       buckets that both sides write
# SUBJECTS_IN   unstored subjects that come to the node        SUBJECTS_OUT   unstored subjects that go to the cluster
# SERVICES_IN   requests that the node's clients answer        SERVICES_OUT   requests that the cluster's clients answer
# The other variables are those of nats-to-beamlog.sh.
set -euo pipefail
beamlog="${BEAMLOG:-beamlog}"
link=side-by-side

case "${1:?begin or end}" in
    begin)
        rules=()
        for name in ${FROM_NATS:-}; do rules+=(--import "stream=$name"); done
        for name in ${FROM_BEAMLOG:-}; do rules+=(--export "stream=$name"); done
        for name in ${BUCKETS:-}; do rules+=(--import "bucket=$name" --export "bucket=$name"); done
        for name in ${SUBJECTS_IN:-}; do rules+=(--import "subject=$name"); done
        for name in ${SUBJECTS_OUT:-}; do rules+=(--export "subject=$name"); done
        for name in ${SERVICES_IN:-}; do rules+=(--requests "subject=$name,direction=in"); done
        for name in ${SERVICES_OUT:-}; do rules+=(--requests "subject=$name,direction=out"); done
        # shellcheck disable=SC2086 # several options in one variable
        "$beamlog" link add "$link" --url "$NATS_URL" ${LINK_OPTIONS:-} "${rules[@]}"
        "$beamlog" link status "$link"
        ;;
    end)
        until "$beamlog" link diff "$link" >/dev/null 2>&1; do sleep 1; done
        "$beamlog" link rm "$link"
        ;;
    *) echo "begin or end, not $1" >&2; exit 2 ;;
esac
