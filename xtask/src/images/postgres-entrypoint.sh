#!/usr/bin/env bash
# Entrypoint of the PostgreSQL test image. It keeps the documented contract of the official `postgres` image:
# POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB, POSTGRES_INITDB_ARGS, POSTGRES_INITDB_WALDIR,
# POSTGRES_HOST_AUTH_METHOD (the first four also as NAME_FILE), PGDATA, and /docker-entrypoint-initdb.d.
#
#   main ─► prepare_directories ─► (root: become postgres, start again) ─► initialise ─► exec postgres
#                                                                          only if PGDATA is empty
#
# No `set -u`: files of /docker-entrypoint-initdb.d that are sourced live in this shell and may not expect it.
set -Eeo pipefail

INIT_FILES=/docker-entrypoint-initdb.d
SOCKET_DIRECTORY=/var/run/postgresql

die() {
	printf 'Error: %s\n' "$1" >&2
	shift
	if [ "$#" -gt 0 ]; then printf '       %s\n' "$@" >&2; fi
	exit 1
}

# read_setting NAME [DEFAULT]: exports NAME with its own value, the contents of the file $NAME_FILE, or the default.
read_setting() {
	local name="$1" value="${2:-}"
	local from_file="${name}_FILE"
	if [ -n "${!name:-}" ] && [ -n "${!from_file:-}" ]; then
		die "both $name and $from_file are set (but are exclusive)"
	elif [ -n "${!name:-}" ]; then
		value="${!name}"
	elif [ -n "${!from_file:-}" ]; then
		[ -r "${!from_file}" ] || die "cannot read ${!from_file}, named by $from_file"
		value="$(<"${!from_file}")"
	fi
	export "$name"="$value"
	unset "$from_file"
}

read_settings() {
	read_setting POSTGRES_PASSWORD
	read_setting POSTGRES_USER postgres
	read_setting POSTGRES_DB "$POSTGRES_USER"
	read_setting POSTGRES_INITDB_ARGS
	: "${POSTGRES_HOST_AUTH_METHOD:=}"
}

check_password() {
	if [ "$POSTGRES_HOST_AUTH_METHOD" = trust ]; then
		printf 'warning: POSTGRES_HOST_AUTH_METHOD is "trust": everyone who reaches the port may do everything\n' >&2
	elif [ -z "$POSTGRES_PASSWORD" ]; then
		die 'Database is uninitialized and superuser password is not specified.' \
			'Set POSTGRES_PASSWORD to a value that is not empty,' \
			'or POSTGRES_HOST_AUTH_METHOD=trust to let everyone in without a password.'
	fi
}

# Creates the directories and, as root, hands them to postgres. Everyone else may not be allowed to change what is
# there already: then the modes stay as they are, and the server judges them.
prepare_directories() {
	local -a directories=("$PGDATA" "$SOCKET_DIRECTORY")
	if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
		directories+=("$POSTGRES_INITDB_WALDIR")
	fi
	mkdir -p "${directories[@]}" || true
	chmod 0700 "$PGDATA" "${directories[@]:2}" 2>/dev/null || true
	chmod 3777 "$SOCKET_DIRECTORY" 2>/dev/null || true
	if [ "$(id -u)" = 0 ]; then
		find "${directories[@]}" ! -user postgres -exec chown postgres:postgres '{}' +
	fi
}

# Starts this script again as postgres, in the same process. HOME must change too: libpq looks for files there.
become_postgres() {
	export HOME=/var/lib/postgresql USER=postgres LOGNAME=postgres
	exec setpriv --reuid=postgres --regid=postgres --init-groups -- "${BASH_SOURCE[0]}" "$@"
}

# initdb needs a name for its user; an id that /etc/passwd does not know gets one from libnss_wrapper.
create_cluster() {
	local -a wrapper=() arguments=() extra=()
	local library passwd group
	if ! getent passwd "$(id -u)" >/dev/null; then
		library="$(find /usr/lib -name libnss_wrapper.so -print -quit)"
		passwd="$(mktemp)"
		group="$(mktemp)"
		printf 'postgres:x:%s:%s:PostgreSQL:%s:/bin/false\n' "$(id -u)" "$(id -g)" "$PGDATA" >"$passwd"
		printf 'postgres:x:%s:\n' "$(id -g)" >"$group"
		wrapper=(env "LD_PRELOAD=$library" "NSS_WRAPPER_PASSWD=$passwd" "NSS_WRAPPER_GROUP=$group")
	fi
	if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
		arguments+=(--waldir "$POSTGRES_INITDB_WALDIR")
	fi
	# The variable is a command line, and may quote like one.
	eval "extra=($POSTGRES_INITDB_ARGS)"
	if [ -n "$POSTGRES_PASSWORD" ]; then
		"${wrapper[@]}" initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") \
			"${arguments[@]}" "${extra[@]}"
	else
		"${wrapper[@]}" initdb --username="$POSTGRES_USER" "${arguments[@]}" "${extra[@]}"
	fi
	rm -f "$passwd" "$group"
}

# Lets clients in from everywhere, by the method asked for or the one that passwords are stored for.
admit_hosts() {
	local method="$POSTGRES_HOST_AUTH_METHOD"
	if [ -z "$method" ]; then
		method="$(postgres -C password_encryption "${@:2}")"
	fi
	{
		printf '\n'
		if [ "$method" = trust ]; then
			printf '# trust: no password is asked for, see https://www.postgresql.org/docs/current/auth-trust.html\n'
		fi
		printf 'host all all all %s\n' "$method"
	} >>"$PGDATA/pg_hba.conf"
}

# The server of the initialisation has the options of the user, but listens on the unix socket only: nobody outside
# can take it for the real one.
start_temporary_server() {
	local options
	options="$(printf '%q ' "${@:2}" -c listen_addresses= -p "${PGPORT:-5432}")"
	env -u NOTIFY_SOCKET pg_ctl -D "$PGDATA" -o "$options" -w start
}

stop_temporary_server() {
	pg_ctl -D "$PGDATA" -m fast -w stop
}

# Runs psql as the superuser in POSTGRES_DB. Sourced init files call it by this name.
docker_process_sql() {
	PGHOST='' PGHOSTADDR='' psql -v ON_ERROR_STOP=1 --no-password --no-psqlrc \
		--username "$POSTGRES_USER" --dbname "$POSTGRES_DB" "$@"
}

create_database() {
	local known
	known="$(docker_process_sql --dbname postgres --tuples-only --no-align --set db="$POSTGRES_DB" \
		<<<"SELECT 1 FROM pg_database WHERE datname = :'db';")"
	if [ -z "$known" ]; then
		docker_process_sql --dbname postgres --set db="$POSTGRES_DB" <<<'CREATE DATABASE :"db";'
		printf '\n'
	fi
}

run_init_file() {
	case "$1" in
		*.sh)
			if [ -x "$1" ]; then
				announce running "$1"
				"$1"
			else
				announce sourcing "$1"
				# shellcheck disable=SC1090
				. "$1"
			fi
			;;
		*.sql) announce running "$1" && docker_process_sql -f "$1" ;;
		*.sql.gz) announce running "$1" && gunzip -c "$1" | docker_process_sql ;;
		*.sql.xz) announce running "$1" && xzcat "$1" | docker_process_sql ;;
		*.sql.zst) announce running "$1" && zstd -dc "$1" | docker_process_sql ;;
		*) announce ignoring "$1" ;;
	esac
}

announce() {
	printf '\n%s: %s %s\n' "$0" "$1" "$2"
}

run_init_files() {
	local file
	for file in "$INIT_FILES"/*; do
		if [ -e "$file" ]; then run_init_file "$file"; fi
	done
	printf '\n'
}

initialise() {
	read_settings
	if [ -s "$PGDATA/PG_VERSION" ]; then
		printf '\nPostgreSQL Database directory appears to contain a database; Skipping initialization\n\n'
		return
	fi
	check_password
	# An unreadable directory must fail now, not look like an empty one after initdb.
	ls "$INIT_FILES" >/dev/null
	create_cluster
	admit_hosts "$@"

	export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"
	start_temporary_server "$@"
	create_database
	run_init_files
	stop_temporary_server
	unset PGPASSWORD
	printf '\nPostgreSQL init process complete; ready for start up.\n\n'
}

# True for command lines that print something and end: they need no cluster.
only_prints() {
	local argument
	for argument in "$@"; do
		case "$argument" in
			-\? | --help | --describe-config | -V | --version) return 0 ;;
		esac
	done
	return 1
}

main() {
	case "${1:-}" in
		-*) set -- postgres "$@" ;;
	esac
	if [ "${1:-}" = postgres ] && ! only_prints "$@"; then
		prepare_directories
		if [ "$(id -u)" = 0 ]; then become_postgres "$@"; fi
		initialise "$@"
	fi
	exec "$@"
}

# Sourced by another script, this file only defines its functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
	main "$@"
fi
