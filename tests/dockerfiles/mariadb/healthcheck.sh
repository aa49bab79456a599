#!/bin/bash
set -eo pipefail
[ "$1" = --connect ] && exec mariadb-admin --host=127.0.0.1 --user=root --password="$MARIADB_ROOT_PASSWORD" ping
