#!/bin/sh
# What is on this server, a line each. Usage: status.sh FOLDER CERTIFICATE
set -u
folder=$1 certificate=$2

docker ps --all --filter label=slipway=model-server --format '{{ .Names }}' | sort | while read -r name; do
    address=$(docker inspect --format '{{ range .NetworkSettings.Networks }}{{ .IPAddress }}{{ end }}' "$name")
    state=$(docker inspect --format 'release {{ index .Config.Labels "slipway.release" }}, {{ .State.Status }}' "$name")
    status=$(curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}' "http://$address:5000/readyz")
    ready='not ready'
    [ "$status" != 200 ] || ready=ready
    [ ! -e "/etc/nginx/out/$address:5000" ] || ready="$ready, out of rotation"
    echo "$name at ${address:-no address}: $state, $ready"
done

maintenance=
[ ! -e /etc/nginx/maintenance ] || maintenance=', in maintenance'
echo "nginx: $(systemctl is-active nginx)$maintenance"

end=$(openssl x509 -noout -enddate -in "$certificate" | cut -d= -f2)
echo "certificate: $((($(date +%s --date "$end") - $(date +%s)) / 86400)) days left"

for place in / "$(docker info --format '{{ .DockerRootDir }}')"; do
    echo "disk $place: $(df --output=pcent,avail --human-readable "$place" | awk 'END { print $1 " used, " $2 " free" }')"
done

[ ! -s "$folder/lease" ] || awk '{ print "lease: a deploy by " $3 " from " $4 " (process " $5 ")" }' "$folder/lease"
