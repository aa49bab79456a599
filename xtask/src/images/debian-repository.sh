set -eu
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes --no-install-recommends --download-only install \
	apache2 curl etcd-client etcd-server gettext-base gosu haproxy mariadb-server memcached mosquitto \
	mosquitto-clients nats-server netcat-openbsd nginx-light nodejs openjdk-17-jre-headless postgresql-15 procps \
	pwgen python3 rabbitmq-server redis-server tini tomcat10 tzdata zookeeper
packages="$1/usr/local/share/debian"
mkdir -p "$packages"
for file in "$1"/var/cache/apt/archives/*.deb; do
	mv "$file" "$packages/$(basename "$file" | sed 's/%3a/_/')"
done
cd "$packages"
for file in *.deb; do
	dpkg-deb --field "$file"
	printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$file" "$(stat --format=%s "$file")" \
		"$(sha256sum "$file" | cut -d ' ' -f 1)"
done > Packages
rm -f "$1"/etc/apt/sources.list.d/* "$1"/etc/apt/apt.conf.d/99mmdebstrap
echo 'deb [trusted=yes] file:/usr/local/share/debian ./' > "$1/etc/apt/sources.list"
