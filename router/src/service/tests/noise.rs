//! Anything at all to the services: never a panic, and never a frame that the port would not take.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn any_message_has_an_outcome(
        data in prop::collection::vec(any::<u8>(), 0..700),
        start in 0usize..4,
        service in 0usize..4,
        changes in prop::collection::vec((0usize..400, any::<u8>()), 0..8),
    ) {
        let mut world = World::new();
        let mac = world.mac("acme/web1.0");
        let mut dhcp = vec![1, 1, 6, 0, 1, 2, 3, 4];
        dhcp.resize(28, 0);
        dhcp.extend(mac.0);
        dhcp.resize(236, 0);
        dhcp.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 3, 50, 4, 10, 1, 0, 11]);
        let starts = [vec![], dhcp, vec![1, 0, 0, 1, 0, 1, 0, 4, 0, 3, 0, 1], vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]];
        let mut message = [starts[start].clone(), data].concat();
        let mut asked = 40_000;
        if service == 3 {
            // Behind the start of a good answer to a question that was sent on.
            let question = [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7][..], b"example\x03org\0", &[0, 1, 0, 1]].concat();
            let frame = datagram(mac, ROUTER, "10.1.0.11", "10.1.0.1", (9, 53), &question);
            let (_, ends, sent) = opened(&world.send("acme/web1.0", &frame).1.unwrap().1);
            asked = ends[0].port();
            message.splice(..0, sent);
            message[2] |= 0x80;
        }
        for (at, byte) in changes {
            message.iter_mut().skip(at).take(1).for_each(|old| *old = byte);
        }
        let own = mac.link_local().to_string();
        let (port, from, source, destination, ports) = [
            ("acme/web1.0", mac, "0.0.0.0", "255.255.255.255", (68, 67)),
            ("acme/web1.0", mac, own.as_str(), "ff02::1:2", (546, 547)),
            ("acme/web1.0", mac, "10.1.0.11", "10.1.0.1", (9, 53)),
            ("uplink:lab", KERNEL, UPSTREAM, "10.1.0.1", (53, asked)),
        ][service];
        let to = if service < 2 { Mac([0xff; 6]) } else { ROUTER };
        let frame = datagram(from, to, source, destination, ports, &message);
        if let (_, Some((to, reply))) = world.send(port, &frame) {
            opened(&reply);
            prop_assert!(reply.len() <= 14 + usize::from(world.snapshot.port(to).unwrap().mtu));
        }
    }
}
