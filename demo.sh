#!/usr/bin/env bash
# The whole story on one machine, with real processes over mutual TLS: provision, verify, start a server and three
# sites, submit a job, follow it, download the result, stop, clean up. Each command is printed before it runs.
#
#   ./demo.sh [--out FOLDER] [--port PORT] [--sites N] [--cases N] [--config JOB.yaml]
set -euo pipefail
called_from=$PWD
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=results/demo-$(date +%Y%m%d-%H%M%S) port=8002 sites=3 cases= config=$here/fl_app/jobs/quick.yaml
while [ $# -gt 0 ]; do
    case $1 in
    --out | --port | --sites | --cases | --config)
        [ $# -gt 1 ] || { echo "demo.sh: $1 needs a value" >&2 && exit 2; }
        printf -v "${1#--}" %s "$2" && shift 2
        ;;
    *)
        sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
        [ "$1" = --help ] && exit 0 || exit 2
        ;;
    esac
done

cd "$here"
. scripts/setup.sh
fedspleen_setup
cd "$called_from"
export PATH=$here/.venv/bin:$PATH
[ ! -e "$out" ] || { echo "demo.sh: $out is there already; name a new folder with --out" >&2 && exit 2; }
mkdir -p "$out"
cd "$out"

processes=()
stop() { # the server last: the sites take their leave of it
    local index
    for ((index = ${#processes[@]} - 1; index >= 0; index--)); do
        kill "${processes[index]}" 2>/dev/null || true
        wait "${processes[index]}" 2>/dev/null || true
    done
    processes=()
    rm -rf consortium kits # private keys
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
run() { echo "\$ $*" && "$@"; }
start() { # NAME COMMAND...: in the background, its output in NAME.txt
    local name=$1
    shift
    echo "\$ $* &"
    "$@" >"$name.txt" 2>&1 &
    processes+=($!)
}

echo "== data: every site has its own"
run fedspleen phantom data --sites "$sites" ${cases:+--cases "$cases"} >/dev/null

echo "== the lead: one file becomes a kit for everybody"
{
    echo "name: demo"
    echo "server: {hosts: [localhost], port: $port, bind: loopback}"
    echo "sites:"
    for ((n = 1; n <= sites; n++)); do echo "  - {name: site-$n, organisation: hospital_$n}"; done
    echo "administrators: [{email: lead@example.org, role: lead}]"
} >consortium.yaml
run fedspleen provision consortium.yaml --out consortium | tee provision.txt
fingerprint=$(sed -n 's/^fingerprint.*: //p' provision.txt)

echo "== everybody: verify the kit against the fingerprint heard by telephone, and unpack it"
names=(server "lead@example.org")
for ((n = 1; n <= sites; n++)); do names+=("site-$n"); done
for name in "${names[@]}"; do
    run fedspleen kit unpack "consortium/$name.kit.zip" "kits/$name" --fingerprint "$fingerprint" | tail -1
done

echo "== server and sites start; each would run on a machine of its own"
start server fedspleen server start kits/server
for ((n = 1; n <= sites; n++)); do
    printf 'data: %s\nthreads: 1\n' "$PWD/data/site-$n" >"kits/site-$n/site.yaml"
    start "site-$n" fedspleen client start "kits/site-$n"
done
for ((wait = 0; wait < 240; wait++)); do
    [ "$(grep -ls registered site-*.txt 2>/dev/null | wc -l)" -eq "$sites" ] && break
    for process in "${processes[@]}"; do
        kill -0 "$process" 2>/dev/null || { tail -n 3 server.txt site-*.txt >&2 && exit 1; }
    done
    sleep 0.25
done
cat server.txt site-*.txt

echo "== the lead: submit a job, follow it, take the result home"
run fedspleen submit "$config" --kit "kits/lead@example.org" --sites "$sites" --out result

echo "== everything ends"
stop
echo "the result is in $out/result, the output of server and sites beside it"
