#!/bin/bash
set -eo pipefail
shopt -s nullglob

if [ "${1:0:1}" = '-' ]; then set -- mariadbd "$@"; fi
if [ "$1" = 'mariadbd' ] && [ "$(id -u)" = 0 ]; then
	find /var/lib/mysql \! -user mysql -exec chown mysql: '{}' +
	exec gosu mysql "${BASH_SOURCE[0]}" "$@"
fi
if [ "$1" = 'mariadbd' ] && [ ! -d /var/lib/mysql/mysql ]; then
	mariadb-install-db --datadir=/var/lib/mysql --auth-root-authentication-method=normal --skip-test-db > /dev/null
	# One statement a line, as the bootstrap reads it.
	printf '%s\n' 'FLUSH PRIVILEGES;' "CREATE USER 'root'@'%' IDENTIFIED BY '${MARIADB_ROOT_PASSWORD:?}';" \
		"GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;" \
		"DROP USER IF EXISTS 'root'@'localhost', 'root'@'127.0.0.1', 'root'@'::1', 'root'@'$(hostname)';" > /tmp/init.sql
	set -- "$@" --init-file=/tmp/init.sql
fi
exec "$@"
