#!/bin/sh
# The lease that one deploy holds on this server: FOLDER/lease, a line "EXPIRES SINCE USER CONTROLLER PID STARTED", both times in
# seconds since 1970 by this server's clock.
# Usage: lease.sh FOLDER take|free MINUTES "USER CONTROLLER PID STARTED" ["THE HOLDER THAT IS GONE"]
# Prints what was found: "free", "ours", "expired LINE", "gone LINE" (all: taken now) or "held LINE" (left alone).
set -eu
folder=$1 wish=$2 minutes=$3 me=$4 gone=${5-}
install -d -m 0755 "$folder" "$folder/releases"
exec 9< "$folder"
flock 9

now=$(date +%s) since=$(date +%s) found=free line=
if [ -s "$folder/lease" ]; then
    line=$(cat "$folder/lease")
    # shellcheck disable=SC2086
    set -- $line
    expires=$1 before=$2
    shift 2
    if [ "$*" = "$me" ]; then
        found=ours since=$before
    elif [ "$*" = "$gone" ]; then
        found=gone
    elif [ "$now" -ge "$expires" ]; then
        found=expired
    else
        found=held
    fi
fi

case $wish$found in
    takeheld | freeheld) ;;
    take*)
        echo "$((now + minutes * 60)) $since $me" 2> /dev/null > "$folder/lease.new" || {
            echo "$folder can not be written to: $(df --human-readable --output=avail "$folder" | tail -n 1) free. Remedy: make room." >&2
            exit 1
        }
        mv "$folder/lease.new" "$folder/lease"
        ;;
    freeours) rm "$folder/lease" ;;
esac
echo "$found $line"
