#!/bin/sh
# A Redis Cluster in containers: three masters with one replica each.
#   cluster.sh serve NAME [OPTION ...]   runs one of its servers
#   cluster.sh make                      joins them to a cluster if necessary, and waits until it is healthy
set -eu
servers='redis-1 redis-2 redis-3 redis-4 redis-5 redis-6'

address() { getent hosts "$1" | cut -d' ' -f1; }

serve() {
  name=$1; shift
  # Servers store each other's addresses. Containers get new addresses at each start, perhaps another's old one: so
  # correct the stored addresses by name.
  if [ -s nodes.conf ]; then
    for server in $servers; do
      for _ in $(seq 50); do if [ -n "$(address "$server")" ]; then break; fi; sleep 0.2; done
      sed -i "s/ [0-9.]*\(:6379@16379,$server[ ,]\)/ $(address "$server")\1/" nodes.conf
    done
  fi
  exec docker-entrypoint.sh redis-server /etc/redis.conf --protected-mode no \
    --cluster-enabled yes --cluster-config-file nodes.conf --cluster-announce-hostname "$name" "$@"
}

is_well() { # it sees all slots served, and is connected to its replica or its master
  redis-cli -h "$1" cluster info | grep -q '^cluster_state:ok' &&
    redis-cli -h "$1" info replication | grep -qE '^(connected_slaves:[1-9]|master_link_status:up)'
}

make() {
  if redis-cli -h redis-1 cluster info | grep -q '^cluster_slots_assigned:0'; then
    # shellcheck disable=SC2046 # one word per server
    redis-cli --cluster create $(for server in $servers; do echo "$(address "$server"):6379"; done) \
      --cluster-replicas 1 --cluster-yes
  fi
  for _ in $(seq 120); do
    ill=
    for server in $servers; do is_well "$server" || ill="$ill $server"; done
    if [ -z "$ill" ]; then echo 'The cluster is healthy.'; exit 0; fi
    sleep 0.5
  done
  echo "These servers are not healthy after a minute:$ill" >&2
  exit 1
}

"$@"
