#!/bin/sh
# Run a command and show the growing size of a folder until it ends, so that minutes pass in sight.
#   sh infra/watched.sh FOLDER COMMAND [ARGUMENT...]
# On a terminal, one line is renewed every other second; elsewhere a line is written every minute.
folder=$1
shift
if [ -t 1 ]; then every=2 start='\r\033[K' end=''; else every=60 start='' end='\n'; fi
"$@" &
command=$!
trap 'kill "$command" 2>/dev/null; exit 130' INT
trap 'kill "$command" 2>/dev/null; exit 143' TERM
seconds=0
while kill -0 "$command" 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    if [ $((seconds % every)) = 0 ] && [ -d "$folder" ]; then
        megabytes=$(($(du -sk "$folder" | cut -f1) / 1000))
        printf "$start%s: %d.%d GB after %d s$end" \
            "$folder" $((megabytes / 1000)) $((megabytes % 1000 / 100)) "$seconds"
    fi
done
[ -t 1 ] && printf '\r\033[K'
wait "$command"
