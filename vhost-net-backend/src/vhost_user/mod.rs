//! vhost-user: the protocol by which a VMM hands over its guest's rings.
