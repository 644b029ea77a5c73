#!/usr/bin/env bash
# From a built program to three agents, a declared model and a rebalance, as a newcomer would type it. Prints how long each step took.
# As root, with /dev/kvm; leaves nothing behind. Run from the project's root after `cargo build`.
set -euo pipefail
vmotion=$(realpath "${CARGO_TARGET_DIR:-target}/debug/vmotion")
kernel=$(realpath "$(find "${CARGO_TARGET_DIR:-target}/debug/build" -name probe.elf | head -1)")
directory=$(mktemp -d)
cd "$directory"
export VMOTION_HOME=$directory/home
services=()
end() {
    "$vmotion" ls --json 2>/dev/null | grep -o '"name": "web-[0-9]*"' | grep -o 'web-[0-9]*' | sort -u | while read -r name; do
        "$vmotion" stop "$name" >/dev/null && "$vmotion" rm "$name" >/dev/null
    done
    kill "${services[@]}" 2>/dev/null || true
    wait
    rm -rf "$directory"
}
trap end EXIT
began=$(date +%s%N)
step() { printf '\n== %s (%s ms after the start)\n' "$*" $((($(date +%s%N) - began) / 1000000)); }

step "a controller and three agents"
"$vmotion" controller --listen 127.0.0.1:0 --data ./c >c.log 2>&1 & services+=($!)
until grep -q https:// c.log; do sleep 0.1; done
for n in 1 2 3; do
    "$vmotion" agent --name "h$n" --dc "dc$n" --data "./h$n" --move-ports "470${n}0-470${n}9" >"h$n.log" 2>&1 & services+=($!)
done
until [ "$("$vmotion" host ls | grep -c ' up ')" = 3 ]; do sleep 0.1; done
"$vmotion" host ls

step "a declared model: three machines, which must not be on one host"
cat >site.toml <<TOML
[[rules]]
name = "web apart"
machines = ["web-*"]
rule = "anti-affinity"
across = "host"

[[machines]]
name = "web"
count = 3
kernel = "$kernel"
cmdline = "ws=16M rate=1M"
memory = "64M"
on = "h1"                        # where they begin, which the rule does not like
TOML
"$vmotion" apply -f site.toml --dry-run
"$vmotion" apply -f site.toml
"$vmotion" ls

step "what would be moved, and why"
"$vmotion" rebalance --dry-run

step "move it"
"$vmotion" rebalance
"$vmotion" ls
"$vmotion" why web-2

step "done"
[ "$("$vmotion" ls --json | grep -c '"host": "h[123]"')" = 3 ]
for n in 1 2 3; do "$vmotion" ls --json | grep -q "\"host\": \"h$n\""; done
