#!/bin/sh
set -e

find /docker-entrypoint.d -follow -type f -print | sort | while read -r file; do
	case "$file" in
		*.envsh) . "$file" ;;
		*.sh) "$file" ;;
	esac
done
exec "$@"
