#!/bin/sh
# Makes a minimal Debian image from packages, for machines that reach a Debian mirror but no image registry.
# mmdebstrap runs from a temporary folder: nothing is installed on the machine.
# Usage: debian-base-image.sh SUITE MIRROR IMAGE
set -eu
suite=$1
mirror=$2
image=$3

for tool in "apt-get --version" "dpkg-deb --version" "perl -MEnglish -e 1"; do
    sh -c "$tool" >/dev/null 2>&1 || {
        echo "no image registry answered, and making the base image from packages needs '$tool' to work here; remedy: on" \
            "Debian or Ubuntu apt-get install perl, elsewhere docker load a debian:$suite-slim and docker tag it $image" >&2
        exit 1
    }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/tool"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
apt() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work" -o Dir::Etc::SourceList="$work/sources.list" \
        -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root "$@" >&2
}
apt update
(cd "$work" && apt download mmdebstrap)
dpkg-deb -x "$work"/mmdebstrap_*.deb "$work/tool"

# usr-is-merged in place of usrmerge saves 45 MB of Perl; the exclusions are those of the official slim images.
PATH="$work/tool/usr/bin:$PATH" mmdebstrap --quiet --variant=minbase --mode=root \
    --hook-dir="$work/tool/usr/share/mmdebstrap/hooks/merged-usr" --include=usr-is-merged \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' --dpkgopt='force-unsafe-io' \
    --aptopt='Acquire::Languages "none"' "$suite" "$work/root.tar" \
    "deb $mirror $suite main" "deb $mirror $suite-updates main" \
    "deb $(echo "$mirror" | sed 's|/debian/*$|/debian-security|') $suite-security main" >&2
docker import --change 'CMD ["/bin/bash"]' "$work/root.tar" "$image"
