#!/usr/bin/env bash
# Starts Debian's PostgreSQL on a free loopback port, in a folder that is gone afterwards and as a
# user that is not root, and runs the service's tests on it: tests/on_postgres.sh PYTHON [options and tests]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1; shift
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1) || true
[ -n "$bin" ] || { echo "no PostgreSQL here: apt-get install postgresql" >&2; exit 1; }
folder=$(mktemp -d)
as=()
if [ "$(id -u)" = 0 ]; then chown postgres "$folder"; as=(runuser -u postgres --); fi
port=$("$python" -c "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1])")
stop() { (cd / && "${as[@]}" "$bin/pg_ctl" -D "$folder/db" -m immediate stop) >/dev/null || true; rm -rf "$folder"; }
trap stop EXIT
(
  cd /
  "${as[@]}" "$bin/initdb" -D "$folder/db" -A trust -U enrich -E UTF8 --no-sync >/dev/null
  "${as[@]}" "$bin/pg_ctl" -D "$folder/db" -l "$folder/log" -w start \
    -o "-h 127.0.0.1 -p $port -k $folder -c fsync=off -c max_connections=500" >/dev/null
)
export ENRICH_TEST_POSTGRES="postgresql+psycopg://enrich@127.0.0.1:$port/postgres"
[ $# -gt 0 ] || set -- --numprocesses 2 --dist loadfile tests/service
"$python" -m pytest -m "not sqlite" "$@"
