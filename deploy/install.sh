#!/usr/bin/env bash
# Installs emberd's packages on a Raspberry Pi (64-bit, Debian 12 or newer) over ssh. Running it again upgrades or does nothing.
#
#   deploy/install.sh [OPTION…] [USER@]HOST FILE.deb…
#
#   --dry-run         say what would be done; change nothing there
#   --uninstall       remove the packages; configuration and models stay
#   --purge           with --uninstall: remove configuration, models and kept requests, too
#   --config FILE     put FILE at /etc/emberd/conf.d/50-install.toml, after checking it there
#   --port N, --identity FILE     for ssh
#
# It uses apt, so that dependencies and conffiles are apt's business, and sudo where the user is not root.
set -euo pipefail

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

dry='' uninstall='' purge='' config='' host='' files=()
ssh_options=(-o ConnectTimeout=10)
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry=1 ;;
    --uninstall) uninstall=1 ;;
    --purge) purge=1 ;;
    --config) [ $# -ge 2 ] || usage; config=$2 && shift ;;
    --port) [ $# -ge 2 ] || usage; ssh_options+=(-p "$2") && shift ;;
    --identity) [ $# -ge 2 ] || usage; ssh_options+=(-i "$2" -o StrictHostKeyChecking=accept-new) && shift ;;
    -*) usage ;;
    *) if [ -z "$host" ]; then host=$1; else files+=("$1"); fi ;;
    esac
    shift
done
[ -n "$host" ] || usage
[ -n "$uninstall" ] || [ ${#files[@]} -gt 0 ] || fail "name the packages that deploy/package built"
for file in "${files[@]}" ${config:+"$config"}; do [ -f "$file" ] || fail "$file: no such file"; done

# shellcheck disable=SC2029 # what is put in here is meant to be put in
there() { ssh "${ssh_options[@]}" "$host" "$@"; }
change() { # WHAT COMMAND…
    local what=$1
    shift
    if [ -n "$dry" ]; then
        printf 'would %s\n' "$what"
    else
        printf '%s\n' "$what"
        there "$@"
    fi
}

# What is there: architecture, glibc, root or sudo, versions.
# shellcheck disable=SC2016 # expands there
facts=$(there 'dpkg --print-architecture; ldd --version | sed -n "1s/.* //p"; id -u; command -v sudo || echo none
    dpkg-query -W -f "\${Package} \${Version} \${db:Status-Status}\n" "emberd*" 2>/dev/null | grep " installed$" || true') ||
    fail "$host cannot be reached, or is no Debian"
{ read -r architecture && read -r glibc && read -r uid && read -r sudo; } <<<"$facts"
installed=$(sed 1,4d <<<"$facts")
[ "$uid" != 0 ] || sudo=''
[ "$sudo" != none ] || fail "$host: neither root nor sudo"

if [ -n "$uninstall" ]; then
    [ -n "$installed" ] || [ -n "$purge" ] || { echo "nothing to remove"; exit 0; }
    names=$(cut -d' ' -f1 <<<"$installed" | paste -sd' ')
    action=remove
    [ -z "$purge" ] || action=purge names="emberd emberd-model-home"
    change "$action $names" "$sudo env DEBIAN_FRONTEND=noninteractive apt-get $action -y -q $names"
    exit
fi

[ "$(printf '2.36\n%s\n' "$glibc" | sort -V | head -1)" = 2.36 ] ||
    fail "$host has glibc $glibc; the packages need 2.36 (Debian 12, Raspberry Pi OS of October 2023)"
wanted=()
for file in "${files[@]}"; do
    for_architecture=$(dpkg-deb -f "$file" Architecture)
    case $for_architecture in all | "$architecture") ;; *) fail "$file is for $for_architecture, $host is $architecture" ;; esac
    name=$(dpkg-deb -f "$file" Package) version=$(dpkg-deb -f "$file" Version)
    if grep -qxF "$name $version installed" <<<"$installed"; then
        echo "$name $version is installed"
    else
        wanted+=("$file")
    fi
done
if [ ${#wanted[@]} -gt 0 ]; then
    names=("${wanted[@]##*/}")
    if [ -n "$dry" ]; then
        printf 'would install %s\n' "${names[@]}"
    else
        echo "installing ${names[*]}"
        place=$(there mktemp -d)
        for file in "${wanted[@]}"; do there "cat >$place/${file##*/}" <"$file"; done
        there "chmod -R a+rX $place"
        there "$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --allow-downgrades ${names[*]/#/$place/}"
        there "rm -r $place"
    fi
fi
if [ -n "$config" ]; then
    if [ -n "$dry" ]; then
        echo "would put $config at /etc/emberd/conf.d/50-install.toml and restart emberd"
    else
        there "cat >/tmp/emberd-install.toml && emberd check-config --config /tmp/emberd-install.toml >/dev/null" <"$config" ||
            fail "$config: refused by emberd check-config; nothing was changed"
        there "$sudo install -D -m 644 /tmp/emberd-install.toml /etc/emberd/conf.d/50-install.toml && rm /tmp/emberd-install.toml && $sudo systemctl restart emberd"
    fi
fi
[ -n "$dry" ] || there 'systemctl status --no-pager -n 5 emberd' || fail "installed, but not running: see above"
