#!/bin/sh
# Checks haproxy.cfg in all its variants: source of the node list, one load balancer or several, TLS.
set -eu
cfg=$(dirname "$0")/haproxy.cfg
PATH=$PATH:/usr/sbin # Debian installs haproxy here, outside a user's PATH
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost \
  -keyout "$tmp/key.pem" -out "$tmp/cert.pem" 2>/dev/null
cat "$tmp/cert.pem" "$tmp/key.pem" > "$tmp/lb.pem"

check() { # check NAME [VARIABLE=value ...]
  name=$1; shift
  env "$@" haproxy -q -dW -c -f "$cfg" || { echo "haproxy.cfg: invalid with $name" >&2; exit 1; }
}
slots=$(for i in $(seq 16); do echo "GW$i=127.0.0.1:$((9000 + i))"; done)

check 'one node'
# shellcheck disable=SC2086 # one word a slot
check 'sixteen nodes' $slots
check 'lists' "LB_ORIGINS=https://a.example https://b.example" "LB_TRUSTED=10.0.0.0/8 192.168.0.0/16"
check "Docker's DNS" GW_DNS=gateway GW_MAX=40
check 'a name server' GW_DNS=gateway.example LB_NS=127.0.0.1:53
echo 1 > "$tmp/haproxy.state" # a missing file would cause a warning
check 'slots' GW_SLOTS=40 "LB_RUN=$tmp"
check 'two load balancers' LB_NAME=lb2 LB1=127.0.0.1:10001 LB2=127.0.0.1:10002
# shellcheck disable=SC2046 # one word a load balancer
check 'eight load balancers' LB_NAME=lb1 $(for i in $(seq 8); do echo "LB$i=127.0.0.1:$((10000 + i))"; done)
check 'TLS' "LB_CERT=$tmp/lb.pem"
check "TLS and Docker's DNS" "LB_CERT=$tmp/lb.pem" GW_DNS=gateway
if env LB1=127.0.0.1:10001 haproxy -q -c -f "$cfg" 2>/dev/null; then
  echo 'haproxy.cfg: accepts several load balancers without LB_NAME' >&2
  exit 1
fi
echo 'haproxy.cfg: all variants are valid'
