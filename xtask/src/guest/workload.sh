#!/bin/sh
# The Debian guest's workload. It takes the place of /init and ends in a power-off.
#
# One worker per CPU (this busybox has no taskset; the scheduler spreads them) writes files into
# tmpfs, reads them back at once and again some rounds later, and forks processes. A file's
# checksum is known before it is written: the same bytes go through a pipe first. So a page that
# was lost, moved wrongly or read through a stale translation shows as a failed check.
#
# Each piece of work done is a reading of the clock: the hypervisor emulates it, and counts.
#
# Protocol with the host, on the console, one line each:
#   STAGE2 cpus=N
#   STAGE2 progress checks_done=N checks_failed=N
#   STAGE2 failed worker=N round=N check=NAME
#   STAGE2 checks_done=N checks_failed=N          (once, the last)
# /stage2.conf, made by the host, sets `duration` (seconds) and `seed`.

export PATH=/bin:/sbin:/usr/bin:/usr/sbin
. /stage2.conf

FILES=8    # files a worker keeps; each is checked again after this many rounds
PIECES=24  # pieces of a file, about 1 MiB in all
FORKS=6    # processes forked in a round

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/null >/dev/console 2>&1
mkdir -p /work
mount -t tmpfs tmpfs /work

# Sets `now`, without forking.
clock() {
    read -r now _ </proc/uptime
    now=${now%%.*}
}

# Tells the hypervisor of a piece of work, without forking.
tick() {
    read -r _ </sys/class/rtc/rtc0/since_epoch
}

# About 44 KB of text, another for each seed, worker and round. Its length is no multiple of a
# page, so that no two pages of a file are alike.
pattern() {
    first=$((1000000 + (seed % 1000) * 7000000 + worker * 1000000 + round * 100))
    seq "$first" $((first + 5500))
}

# A whole file: the piece, over and over.
pieces() {
    count=0
    while [ "$count" -lt "$PIECES" ]; do
        echo piece
        count=$((count + 1))
    done
}

checksum() {
    md5sum | cut -c 1-32
}

# check NAME ACTUAL EXPECTED
check() {
    tick
    done=$((done + 1))
    if [ "$2" != "$3" ] || [ -z "$3" ]; then
        failed=$((failed + 1))
        echo "STAGE2 failed worker=$worker round=$round check=$1"
    fi
}

check_forks() {
    children=
    code=1
    while [ "$code" -le "$FORKS" ]; do
        (exit "$code") &
        children="$children $!"
        code=$((code + 1))
    done
    code=1
    for child in $children; do
        wait "$child"
        check fork "$?" "$code"
        code=$((code + 1))
    done
}

work() {
    worker=$1 round=0 done=0 failed=0
    mkdir "/work/$worker" && cd "/work/$worker" || return 1
    file_list=$(pieces)
    while clock && [ "$now" -lt "$end" ]; do
        slot=$((round % FILES))
        if [ "$round" -ge "$FILES" ]; then
            check aged "$(checksum <"$slot")" "$(cat "$slot.sum")"
        fi
        pattern >piece
        tick
        check piece "$(checksum <piece)" "$(pattern | checksum)"
        # shellcheck disable=SC2086 # a list of names
        cat $file_list | checksum >"$slot.sum"
        tick
        # shellcheck disable=SC2086
        cat $file_list >"$slot"
        tick
        check fresh "$(checksum <"$slot")" "$(cat "$slot.sum")"
        check_forks
        round=$((round + 1))
        echo "$done $failed" >tally.new && mv tally.new tally
    done
}

# Sets `total_done` and `total_failed` from what the workers have noted so far.
add_up() {
    total_done=0 total_failed=0
    for tally in /work/*/tally; do
        [ -f "$tally" ] || continue
        read -r done failed <"$tally"
        total_done=$((total_done + done))
        total_failed=$((total_failed + failed))
    done
}

cpus=$(grep -c ^processor /proc/cpuinfo)
echo "STAGE2 cpus=$cpus"

# From so many readings on it takes us to be at work.
begun=0
while [ "$begun" -lt 16 ]; do
    tick
    begun=$((begun + 1))
done

clock
end=$((now + duration))
workers=
while [ "$cpus" -gt 0 ]; do
    cpus=$((cpus - 1))
    work "$cpus" &
    workers="$workers $!"
done

while clock && [ "$now" -lt "$end" ]; do
    sleep 2
    add_up
    echo "STAGE2 progress checks_done=$total_done checks_failed=$total_failed"
done

lost=0
for pid in $workers; do
    wait "$pid" || lost=$((lost + 1))
done
add_up
echo "STAGE2 checks_done=$total_done checks_failed=$((total_failed + lost))"
poweroff -f
