#!/bin/sh
# The first process of a container: it starts the dashboard, and again where that ends. When the
# container is stopped, all processes are told, and runs have the time to save.
if [ -f "$DATABASE_PASSWORD_FILE" ]; then
    PGPASSWORD=$(cat "$DATABASE_PASSWORD_FILE")
    export PGPASSWORD
fi
trap 'stopped=1; kill -TERM -1' TERM INT
until [ "$stopped" ]; do
    "${@:-slimscope}" &
    wait $!
    [ "$stopped" ] || sleep 5
done
while kill -0 -1 2>/dev/null; do sleep 1; done
