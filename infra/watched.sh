#!/bin/sh
# Run a command and show the growing size of a folder until it ends, so that minutes pass in sight.
#   sh infra/watched.sh FOLDER COMMAND [ARGUMENT...]
# On a terminal, one line is renewed every other second; elsewhere a line is written every minute.
folder=$1
shift
if [ -t 1 ]; then every=2 start='\r\033[K' end=''; else every=60 start='' end='\n'; fi

watch() {
    began=$(date +%s) last=$(date +%s)
    while sleep 1 >/dev/null 2>&1; do
        now=$(date +%s)
        [ $((now - last)) -ge "$every" ] || continue
        last=$now
        kibibytes=$(du -sk "$folder" 2>/dev/null | cut -f1)
        [ -n "$kibibytes" ] || continue
        tenths=$((kibibytes * 1024 / 100000000))
        printf "$start%s: %d.%d GB after %d s$end" \
            "$folder" $((tenths / 10)) $((tenths % 10)) $((now - began))
    done
}

# The command runs in the foreground, so that Ctrl-C ends it with all that it has started.
watch &
watcher=$!
trap : INT
trap 'kill "$watcher"; exit 143' TERM
"$@"
status=$?
kill "$watcher" 2>/dev/null
wait "$watcher" 2>/dev/null
[ -t 1 ] && printf '\r\033[K'
exit "$status"
