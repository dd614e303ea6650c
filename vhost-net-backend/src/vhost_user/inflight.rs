//! The messages about chains in flight: the front end keeps a file for us that says what a back end had popped and not
//! given back, and shows it to the next one (vhost-user, "Inflight I/O tracking").

use std::fs::File;
use std::os::fd::OwnedFd;

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use super::error::SessionError;
use super::message::Inflight;
use super::rings::{MAX_SIZE, Ring};
use super::session::{Answer, Session};
use crate::guest_memory::InflightArea;

impl Session {
    /// A new file, with nothing in flight.
    pub(super) fn get_inflight_fd(&self, wanted: Inflight) -> Result<Answer, SessionError> {
        let Inflight { rings, entries, .. } = self.checked(wanted)?;
        let file = InflightArea::create(rings, entries).map_err(SessionError::Fd)?;
        let area = Inflight { size: InflightArea::bytes(rings, entries), offset: 0, rings, entries };
        Ok(Answer::File(area.payload(), file.into()))
    }

    /// Such a file, or one of the daemon before. It is of use from the next start of a vring on.
    pub(super) fn set_inflight_fd(&mut self, area: Inflight, fds: Vec<OwnedFd>) -> Result<(), SessionError> {
        let Inflight { size, offset, rings, entries } = self.checked(area)?;
        if let Some(index) = self.rings.iter().position(Ring::is_running) {
            return Err(SessionError::Running("what is in flight", index));
        }
        let file = File::from(fds.into_iter().next().ok_or(SessionError::Fds(0))?);
        self.inflight = Some(InflightArea::map(&file, offset, size, rings, entries)?);
        Ok(())
    }

    /// Numbers from a front end size a file and an array (CVE-2021-3839).
    fn checked(&self, area: Inflight) -> Result<Inflight, SessionError> {
        let negotiated = self.protocol_features.unwrap_or_default() & Protocol::INFLIGHT_SHMFD.bits() != 0;
        if !negotiated {
            return Err(SessionError::NoProtocolFeatures);
        }
        if area.rings == 0 || usize::from(area.rings) > self.rings.len() {
            return Err(SessionError::Range("number of vrings", u64::from(area.rings)));
        }
        if !area.entries.is_power_of_two() || u32::from(area.entries) > MAX_SIZE {
            return Err(SessionError::Range("vring size", u64::from(area.entries)));
        }
        Ok(area)
    }
}

#[cfg(test)]
mod tests {
    use vhost::vhost_user::message::FrontendReq as R;

    use super::super::test_front_end::{FrontEnd, Hear, NACK, OK, Say, event};
    use super::*;

    fn front_end() -> FrontEnd {
        let mut front_end = FrontEnd::new(1);
        let protocol = (Protocol::REPLY_ACK | Protocol::INFLIGHT_SHMFD).bits();
        front_end.converse(&[
            (Say::U64(R::SET_FEATURES, 1 << 32 | 1 << 30), false, Hear::Quiet),
            (Say::U64(R::SET_PROTOCOL_FEATURES, protocol), false, Hear::Quiet),
        ]);
        front_end
    }

    fn payload(size: u64, offset: u64, rings: u16, entries: u16) -> Vec<u8> {
        Inflight { size, offset, rings, entries }.payload()
    }

    #[test]
    fn the_file_goes_out_and_comes_back() {
        let mut front_end = front_end();
        // The specification's 20 bytes, and the 24 that front ends send.
        let wanted = payload(0, 0, 2, 256);
        for len in [20, 24] {
            let asked = wanted.get(..len).unwrap().to_vec();
            assert_eq!(front_end.raw(R::GET_INFLIGHT_FD.into(), false, asked, Vec::new()), Hear::Bytes(24));
        }
        let file = front_end.handed.take().unwrap();
        let size = InflightArea::bytes(2, 256);
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, i64::try_from(size).unwrap());
        let set = |front_end: &mut FrontEnd, payload: Vec<u8>, file: &OwnedFd| {
            front_end.raw(R::SET_INFLIGHT_FD.into(), true, payload, vec![file.try_clone().unwrap()])
        };
        assert_eq!(set(&mut front_end, payload(size, 0, 2, 256), &file), OK);
        for (what, bad) in [
            ("no vring", payload(size, 0, 0, 256)),
            ("more vrings than there are", payload(size, 0, 3, 256)),
            ("2^16 - 1 vrings (CVE-2021-3839)", payload(size, 0, u16::MAX, u16::MAX)),
            ("no entry", payload(size, 0, 2, 0)),
            ("not a power of two", payload(size, 0, 2, 255)),
            ("vrings that do not fit", payload(size, 0, 2, 32768)),
            ("past the end", payload(size + 4096, 0, 2, 256)),
            ("an offset past the end", payload(size, 4096, 2, 256)),
            ("an offset inside a page", payload(size, 8, 2, 256)),
            ("an offset that wraps", payload(size, u64::MAX - 4095, 2, 256)),
            ("2^63 bytes", payload(1 << 63, 0, 2, 256)),
        ] {
            assert_eq!(set(&mut front_end, bad, &file), NACK, "{what}");
        }
        assert_eq!(set(&mut front_end, payload(size, 0, 2, 256), &event()), NACK, "not a file");
        let asked = payload(0, 0, u16::MAX, u16::MAX);
        assert_eq!(front_end.raw(R::GET_INFLIGHT_FD.into(), true, asked, Vec::new()), Hear::Close);
    }

    #[test]
    fn nothing_without_the_protocol_feature() {
        let mut front_end = FrontEnd::new(1);
        let asked = payload(0, 0, 2, 256);
        assert_eq!(front_end.raw(R::GET_INFLIGHT_FD.into(), false, asked, Vec::new()), Hear::Close);
        assert!(front_end.session.inflight.is_none());
    }
}
