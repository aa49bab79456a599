#!/bin/sh
# Entrypoint of the Redis test image. It keeps the documented contract of the official `redis` image:
#   * `-option …` or `file.conf …` as the command is given to redis-server;
#   * redis-server started by root takes over /data and runs as the user `redis`;
#   * protected mode is off unless the user says otherwise, so that a client outside the container can connect.
set -e

# True when one of these configuration files, or a file it includes, sets protected-mode.
sets_protected_mode() {
	for file in "$@"; do
		[ -r "$file" ] || continue
		if grep -Eqi '^[[:space:]]*protected-mode[[:space:]]' "$file"; then
			return 0
		fi
		included="$(sed -nE 's/^[[:space:]]*include[[:space:]]+"?([^"[:space:]]+)"?.*/\1/Ip' "$file")"
		# Unquoted: one word per included file, and redis expands patterns in them too.
		# shellcheck disable=SC2086
		if [ -n "$included" ] && sets_protected_mode $included; then
			return 0
		fi
	done
	return 1
}

case "${1:-}" in
	-* | *.conf) set -- redis-server "$@" ;;
esac

if [ "${1:-}" = redis-server ]; then
	if [ "$(id -u)" = 0 ]; then
		find /data ! -user redis -exec chown redis:redis '{}' +
		export HOME=/data USER=redis
		exec setpriv --reuid=redis --regid=redis --clear-groups -- "$0" "$@"
	fi

	# Dumps hold user data: nobody else needs to read them.
	umask 0077

	# The last setting wins, and options win over the configuration file. So the default goes in front of the
	# options, and a configuration file that has its own setting is left alone.
	case "${2:-}" in
		-v | --version | -h | --help | --test-memory | --check-system) ;;
		'' | -*)
			shift
			set -- redis-server --protected-mode no "$@"
			;;
		*)
			if ! sets_protected_mode "$2"; then
				config="$2"
				shift 2
				set -- redis-server "$config" --protected-mode no "$@"
			fi
			;;
	esac
fi

exec "$@"
