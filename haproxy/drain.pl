#!/usr/bin/perl
# Closes the sockets of an HAProxy one by one, evenly over a time, before it stops. Their clients reconnect to others.
#   drain.pl SOCKET SECONDS     SOCKET: HAProxy's admin socket, LB_RUN/haproxy.sock
use strict;
use warnings;
use IO::Socket::UNIX;

my ($path, $seconds) = @ARGV;
die "usage: drain.pl SOCKET SECONDS\n" unless defined $seconds && $seconds =~ /^\d+$/;

sub ask {
    my ($command) = @_;
    my $socket = IO::Socket::UNIX->new(Peer => $path) or die "drain.pl: $path cannot be opened: $!\n";
    print $socket "$command\n";
    my @lines = <$socket>;
    return @lines;
}

my @sessions = map { /^(0x[0-9a-f]+):.* fe=public / ? $1 : () } ask("show sess");
for my $session (@sessions) {
    ask("shutdown session $session");
    select(undef, undef, undef, $seconds / @sessions);    # sleeps a part of a second
}
print "closed " . @sessions . " sockets\n";
