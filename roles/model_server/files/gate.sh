#!/bin/sh
# Waits until a container has answered every example of every model rightly (GET /readyz), and then removes the file by which it is
# out of rotation. Exit status 1, and the reason, where it will not. Usage: gate.sh CONTAINER ADDRESS SECONDS FILE
set -u
container=$1 url=http://$2:5000/readyz seconds=$3 out=$4

restarts() { docker inspect --format '{{ .RestartCount }}' "$container"; }

refuse() {
    echo "$1"
    exit 1
}

before=$(restarts)
end=$(($(date +%s) + seconds))
while true; do
    answer=$(curl --silent --max-time 10 --write-out '\n%{http_code}' "$url")
    case $answer in
        *200) rm -f "$out" && exit 0 ;;
        # The app's own verdict: another try would not help.
        *503) refuse "${answer%503}" ;;
    esac
    [ "$(restarts)" -lt $((before + 3)) ] || refuse 'it ends as soon as it starts'
    [ "$(date +%s)" -lt "$end" ] || refuse "it gives no answer in $seconds s"
    sleep 0.2
done
