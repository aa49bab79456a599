#!/usr/bin/env bash
set -Eeuo pipefail

[ -s "$PGDATA/PG_VERSION" ] && exit 0
: "${POSTGRES_PASSWORD:?the first start needs a password}"
initdb --no-sync --username="${POSTGRES_USER:-postgres}" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD")
printf 'host all all all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
