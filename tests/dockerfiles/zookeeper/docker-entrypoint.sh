#!/bin/bash
set -e

if [[ "$(id -u)" = 0 ]]; then
	chown -R zookeeper "$ZOO_DATA_DIR" "$ZOO_DATA_LOG_DIR"
	exec gosu zookeeper "$0" "$@"
fi
if [[ ! -f "$ZOO_CONF_DIR/zoo.cfg" ]]; then
	printf '%s\n' "dataDir=$ZOO_DATA_DIR" "dataLogDir=$ZOO_DATA_LOG_DIR" "tickTime=$ZOO_TICK_TIME" \
		"clientPort=2181" "admin.enableServer=false" > "$ZOO_CONF_DIR/zoo.cfg"
fi
exec "$@"
