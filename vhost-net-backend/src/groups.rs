//! The frames of one burst, by egress, in the order they came; at the same cost for any number of ports.

use arrayvec::ArrayVec;
use router::PortId;

use crate::vring::BURST;

/// Which frames go out of which port.
#[derive(Debug)]
pub struct Groups {
    /// Place in `groups` of each port, plus one; 0: none yet. By port index.
    place: Vec<u8>,
    groups: ArrayVec<Group, BURST>,
    /// The frame after each frame in its group.
    next: [u8; BURST],
}

#[derive(Clone, Copy, Debug)]
struct Group {
    egress: PortId,
    first: u8,
    last: u8,
}

/// The frames of one group.
#[derive(Clone, Copy, Debug)]
pub struct Members {
    next: [u8; BURST],
    first: u8,
    last: u8,
}

impl Groups {
    /// For that many ports.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Self { place: vec![0; ports], groups: ArrayVec::new(), next: [0; BURST] }
    }

    /// Between two bursts: for another number of ports.
    pub fn fit(&mut self, ports: usize) {
        self.place.resize(ports, 0);
    }

    /// Frame `i` of the burst goes out of `egress`.
    pub fn push(&mut self, i: usize, egress: PortId) {
        let (Ok(i), Some(place)) = (u8::try_from(i), self.place.get_mut(egress.index())) else { return };
        let known = usize::from(*place).checked_sub(1).and_then(|at| self.groups.get_mut(at));
        if let Some(group) = known {
            if let Some(next) = self.next.get_mut(usize::from(group.last)) {
                *next = i;
            }
            group.last = i;
        } else if self.groups.try_push(Group { egress, first: i, last: i }).is_ok() {
            *place = u8::try_from(self.groups.len()).unwrap_or(0);
        }
    }

    /// Where frames go, in the order in which [`Self::pop`] gives them.
    pub fn egresses(&self) -> impl ExactSizeIterator<Item = PortId> {
        self.groups.iter().rev().map(|group| group.egress)
    }

    /// Takes one group out.
    pub fn pop(&mut self) -> Option<(PortId, Members)> {
        let Group { egress, first, last } = self.groups.pop()?;
        if let Some(place) = self.place.get_mut(egress.index()) {
            *place = 0;
        }
        Some((egress, Members { next: self.next, first, last }))
    }
}

impl Members {
    /// Indices into the burst, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        let after = |i: &u8| (*i != self.last).then(|| self.next.get(usize::from(*i)).copied()).flatten();
        std::iter::successors(Some(self.first), after).map(usize::from)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_frame_leaves_once_in_order() {
        let mut groups = Groups::new(5);
        for (i, port) in [3, 1, 3, 0, 1, 3, 4].into_iter().enumerate() {
            groups.push(i, PortId(port));
        }
        let mut seen = Vec::new();
        while let Some((egress, frames)) = groups.pop() {
            seen.push((egress.0, frames.iter().collect::<Vec<_>>()));
        }
        seen.sort();
        assert_eq!(seen, [(0, vec![3]), (1, vec![1, 4]), (3, vec![0, 2, 5]), (4, vec![6])]);
        groups.push(0, PortId(3));
        assert_eq!(groups.pop().map(|(_, f)| f.iter().count()), Some(1));
    }

    proptest! {
        #[test]
        fn groups_are_those_of_a_map(
            bursts in proptest::collection::vec(proptest::collection::vec(0_u32..100, 0..BURST + 1), 1..5),
        ) {
            let mut groups = Groups::new(100);
            for burst in bursts {
                let mut model = BTreeMap::<u32, Vec<usize>>::new();
                for (i, port) in burst.into_iter().enumerate() {
                    groups.push(i, PortId(port));
                    model.entry(port).or_default().push(i);
                }
                let mut seen = BTreeMap::new();
                while let Some((egress, frames)) = groups.pop() {
                    prop_assert!(seen.insert(egress.0, frames.iter().collect::<Vec<_>>()).is_none());
                }
                prop_assert_eq!(seen, model);
            }
        }
    }
}
