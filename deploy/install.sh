#!/usr/bin/env bash
# Installs emberd's packages on a Raspberry Pi (64-bit, Debian 12 or newer) over ssh. Running it again upgrades or does nothing.
#
#   deploy/install.sh [OPTION…] [USER@]HOST FILE.deb…
#
#   --dry-run         say what would be done; change nothing there
#   --uninstall       remove the packages; configuration and models stay
#   --purge           with --uninstall: remove configuration, models and kept requests, too
#   --config FILE     put FILE at /etc/emberd/conf.d/50-install.toml, and back what was there if the whole is no good
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
    dpkg-query -W -f "\${Package} \${Version} \${db:Status-Status}\n" "emberd*" 2>/dev/null | grep -E " (installed|config-files)$" || true') ||
    fail "$host cannot be reached, or is no Debian"
{ read -r architecture && read -r glibc && read -r uid && read -r sudo; } <<<"$facts"
# With --purge what has been removed counts, too: its configuration is there.
known=$(sed 1,4d <<<"$facts")
installed=$(grep ' installed$' <<<"$known" || true)
[ "$uid" != 0 ] || sudo=''
[ "$sudo" != none ] || fail "$host: neither root nor sudo"

if [ -n "$uninstall" ]; then
    action=remove
    [ -z "$purge" ] || action=purge installed=$known
    [ -n "$installed" ] || { echo "nothing to $action"; exit 0; }
    names=$(cut -d' ' -f1 <<<"$installed" | paste -sd' ')
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
        trap 'there "rm -rf $place"' EXIT
        paths=()
        for file in "${wanted[@]}"; do
            # Numbered: a file's name may hold anything.
            paths+=("$place/${#paths[@]}.deb")
            there "cat >${paths[-1]}" <"$file"
        done
        there "chmod -R a+rX $place"
        # A configuration file that was changed there stays; nobody is asked.
        there "$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --allow-downgrades \
            -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold ${paths[*]}"
    fi
fi
if [ -n "$config" ]; then
    if [ -n "$dry" ]; then
        echo "would put $config at /etc/emberd/conf.d/50-install.toml and restart emberd"
    else
        # Checked where it belongs, with everything that is there besides.
        own=/etc/emberd/conf.d/50-install.toml
        there "set -e
            if [ -e $own ]; then $sudo mv $own $own.old; fi
            $sudo install -D -m 644 /dev/stdin $own
            if ! $sudo emberd check-config >/dev/null; then
                $sudo rm $own
                if [ -e $own.old ]; then $sudo mv $own.old $own; fi
                exit 1
            fi
            $sudo rm -f $own.old" <"$config" || fail "$config: refused by emberd check-config; the configuration is as it was"
        there "$sudo systemctl restart emberd"
    fi
fi
[ -n "$dry" ] || there 'systemctl status --no-pager -n 5 emberd' || fail "installed, but not running: see above"
