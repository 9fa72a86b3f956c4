#!/bin/sh
# Makes the database POSTGRES_DB of POSTGRES_USER at the first start, then serves it.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
data=/var/lib/postgresql/data
as_postgres="setpriv --reuid=postgres --regid=postgres --init-groups"
if [ ! -s $data/PG_VERSION ]; then
  install --directory --owner=postgres --mode=700 $data
  printf %s "$POSTGRES_PASSWORD" >/tmp/password
  chown postgres /tmp/password
  $as_postgres initdb -D $data -U "$POSTGRES_USER" --pwfile=/tmp/password \
    --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8
  echo "host all all all scram-sha-256" >>$data/pg_hba.conf
  $as_postgres pg_ctl -D $data -w -o "-c listen_addresses=" start
  createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
  $as_postgres pg_ctl -D $data -w stop
fi
exec $as_postgres postgres -D $data -c listen_addresses='*'
