//! The fake guest: a vhost-user front end, a memfd, a ring driver and a smoltcp stack.
