//! Section A, guest memory: regions that lie, files that are none, files that shrink.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, fallocate, ftruncate, memfd_create, open};

use super::attacker::{Attacker, BUFFERS, Desc, MEMORY, RX, TX, USER, addresses, memfd, region};
use super::frames::udp4;
use super::wire::{Answer, request, u32s, u64s};
use super::{Case, Field, Wanted, case};

const SOON: Duration = Duration::from_secs(1);
const PAGE: u64 = 4096;

/// The cases.
pub const CASES: &[Case] = &[
    case("A08 no regions", "SET_MEM_TABLE of 0 regions", Wanted::Refused, |f| {
        f.negotiated()?.refused(request::SET_MEM_TABLE, &u32s(&[0, 0]))
    }),
    case("A08 33 regions", "one more than the limit, 32 descriptors", Wanted::Refused, |f| {
        table(f, 33, 33, 32)
    }),
    case("A08 2^32-1 regions", "a count that overflows any product", Wanted::Refused, |f| {
        table(f, u32::MAX, 1, 1)
    }),
    case("A08 count above payload", "2 regions announced, 1 there", Wanted::Refused, |f| table(f, 2, 1, 1)),
    case("A08 count below payload", "1 region announced, 2 there", Wanted::Refused, |f| table(f, 1, 2, 1)),
    case("A08 more regions than fds", "2 regions, 1 descriptor", Wanted::Refused, |f| table(f, 2, 2, 1)),
    case("A09 region of 0 bytes", "an empty region", Wanted::Refused, |f| bad(f, &region(0, 0, USER, 0))),
    case("A09 region of 1 TiB", "in a file of 1 MiB", Wanted::Refused, |f| {
        bad(f, &region(0, 1 << 40, USER, 0))
    }),
    case("A09 region of 2^63", "half of the address space", Wanted::Refused, |f| {
        bad(f, &region(0, 1 << 63, USER, 0))
    }),
    case("A10 past the end of the file", "one page more than the file has", Wanted::Refused, |f| {
        bad(f, &region(0, MEMORY + PAGE, USER, 0))
    }),
    case("A10 offset at the end of the file", "one page from where the file ends", Wanted::Refused, |f| {
        bad(f, &region(0, PAGE, USER, MEMORY))
    }),
    case(
        "A11 file truncated, then transmit",
        "frames from memory that is gone: SIGBUS",
        Wanted::PortDies,
        |f| {
            let mut attacker = f.started()?;
            ftruncate(&attacker.memory, BUFFERS)?;
            attacker.descriptors(TX, 0, &[Desc::last(BUFFERS, 100, 0)])?;
            attacker.offer(TX, &[0])?;
            attacker.wire.closes_within(SOON)
        },
    ),
    case(
        "A11 file truncated, then receive",
        "a frame for a buffer that is gone: SIGBUS",
        Wanted::PortDies,
        |f| {
            let mut attacker = f.started()?;
            attacker.offer_receive(16, 4096)?;
            ftruncate(&attacker.memory, BUFFERS)?;
            to_attacked(f)?;
            attacker.wire.closes_within(SOON)
        },
    ),
    case(
        "A11 file truncated under the rings",
        "the rings themselves are gone: SIGBUS",
        Wanted::PortDies,
        |f| {
            let attacker = f.started()?;
            ftruncate(&attacker.memory, 0)?;
            attacker.kick(TX)?;
            attacker.wire.closes_within(SOON)
        },
    ),
    case(
        "A11 file truncated under the receive ring",
        "the witness sends to a ring that is gone",
        Wanted::PortDies,
        |f| {
            let mut attacker = f.started()?;
            attacker.offer_receive(16, 4096)?;
            ftruncate(&attacker.memory, 0)?;
            to_attacked(f)?;
            attacker.wire.closes_within(SOON)
        },
    ),
    case(
        "A11 file truncated before the start",
        "the rings are gone when they are set up",
        Wanted::Harmless,
        |f| {
            let attacker = f.with_memory()?;
            ftruncate(&attacker.memory, 0)?;
            attacker.set_up(TX)?;
            let fd = attacker.kicks.get(1).map(|fd| fd.as_fd());
            let _ = attacker.wire.ask(request::SET_VRING_KICK, &u64s(&[1]), fd.as_slice())?;
            Ok(())
        },
    ),
    case(
        "A11 truncated and grown again, 20 times",
        "the file shrinks and grows under a running ring",
        Wanted::Harmless,
        |f| {
            let attacker = f.started()?;
            for _ in 0..20 {
                ftruncate(&attacker.memory, 0)?;
                let _ = attacker.kick(TX);
                ftruncate(&attacker.memory, MEMORY)?;
            }
            Ok(())
        },
    ),
    case(
        "A12 hole in the memory",
        "pages punched out of the file under running rings",
        Wanted::Harmless,
        |f| {
            let attacker = f.started()?;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&attacker.memory, flags, 0, MEMORY)?;
            attacker.kick(TX)
        },
    ),
    case(
        "A12 huge pages that are not there",
        "a hugetlb file without pages: SIGBUS on touch",
        Wanted::PortDies,
        |f| {
            let attacker = f.negotiated()?;
            // Of a size that no machine of ours has; a kernel that does not know it has nothing to show.
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB;
            let Ok(huge) = memfd_create("hostile", flags) else { return Ok(()) };
            ftruncate(&huge, 1 << 30)?;
            if attacker.table_of(&region(0, 1 << 30, USER, 0), &huge)? == Answer::Done {
                attacker.set_up(TX)?;
                let fd = attacker.kicks.get(1).map(|fd| fd.as_fd());
                let _ = attacker.wire.ask(request::SET_VRING_KICK, &u64s(&[1]), fd.as_slice())?;
                attacker.wire.closes_within(SOON)?;
            }
            Ok(())
        },
    ),
    case(
        "A13 file of another file system",
        "memory on disk, whose faults wait for a device",
        Wanted::Refused,
        |f| {
            let file = tempfile::tempfile()?;
            file.set_len(MEMORY)?;
            let on_disk = rustix::fs::fstatfs(&file)?.f_type != 0x0102_1994;
            ensure!(
                !on_disk || f.negotiated()?.table_of(&region(0, MEMORY, USER, 0), &file)? == Answer::Refused,
                "taken"
            );
            Ok(())
        },
    ),
    case("A14 pipe as memory", "a descriptor that cannot be mapped", Wanted::Refused, |f| {
        not_memory(f, &rustix::pipe::pipe()?.0)
    }),
    case("A14 socket as memory", "a descriptor that cannot be mapped", Wanted::Refused, |f| {
        not_memory(f, &UnixStream::pair()?.0.into())
    }),
    case("A14 directory as memory", "a descriptor that cannot be mapped", Wanted::Refused, |f| {
        not_memory(f, &File::open("/tmp")?.into())
    }),
    case("A14 /dev/zero as memory", "a device that can be mapped", Wanted::Refused, |f| {
        not_memory(f, &File::options().read(true).write(true).open("/dev/zero")?.into())
    }),
    case("A14 eventfd as memory", "a descriptor that cannot be mapped", Wanted::Refused, |f| {
        not_memory(f, &super::attacker::event()?)
    }),
    case("A14 read-only file as memory", "a file that may not be written", Wanted::Refused, |f| {
        let file = memfd(MEMORY)?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        not_memory(f, &open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }),
    case("A14 O_PATH file as memory", "a descriptor that is only a name", Wanted::Refused, |f| {
        let file = memfd(MEMORY)?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        not_memory(f, &open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }),
    case("A15 offset not on a page", "an mmap offset of 16", Wanted::Refused, |f| {
        bad(f, &region(0, PAGE, USER, 16))
    }),
    case("A15 size not on a page", "a region of 4097 bytes", Wanted::Refused, |f| {
        bad(f, &region(0, 4097, USER, 0))
    }),
    case("A15 offset overflows", "offset and size wrap 64 bits", Wanted::Refused, |f| {
        bad(f, &region(0, 2 * PAGE, USER, 0_u64.wrapping_sub(PAGE)))
    }),
    case("A16 overlap in the guest", "two regions at one guest address", Wanted::Refused, |f| {
        two(f, region(0, 2 * PAGE, USER, 0), region(PAGE, PAGE, USER + MEMORY, 0))
    }),
    case("A16 overlap in the front end", "two regions at one user address", Wanted::Refused, |f| {
        two(f, region(0, 2 * PAGE, USER, 0), region(MEMORY, PAGE, USER + PAGE, 0))
    }),
    case("A17 guest address wraps", "a region that ends beyond 2^64", Wanted::Refused, |f| {
        bad(f, &region(0_u64.wrapping_sub(PAGE), 2 * PAGE, USER, 0))
    }),
    case("A17 user address wraps", "a region that ends beyond 2^64 in the front end", Wanted::Refused, |f| {
        bad(f, &region(0, 2 * PAGE, 0_u64.wrapping_sub(PAGE), 0))
    }),
    case("A18 another tenant's memory", "the same memfd offered in two tenants", Wanted::Refused, |f| {
        let owner = f.with_memory()?;
        let other = Attacker::negotiated(&f.foreign_socket(), 0)?;
        let answer = other.table_of(&region(0, MEMORY, USER, 0), &owner.memory)?;
        ensure!(answer == Answer::Refused, "{answer:?}");
        Ok(())
    }),
    case(
        "A19 memory replaced under traffic",
        "SET_MEM_TABLE 50 times while frames flow",
        Wanted::Obeyed,
        |f| {
            let mut attacker = f.started()?;
            attacker.offer_receive(16, 4096)?;
            for _ in 0..50 {
                ensure!(attacker.table(&region(0, MEMORY, USER, 0))? == Answer::Done, "refused");
                to_attacked(f)?;
            }
            let frame = udp4(f.attacked, f.witness, b"on new memory");
            attacker.send(&[0; 12], &frame)?;
            f.witnessed().map(drop)
        },
    ),
    case(
        "A19 region removed under the rings",
        "REM_MEM_REG of the memory that the rings lie in",
        Wanted::Harmless,
        |f| {
            let attacker = f.started()?;
            attacker.kick(TX)?;
            attacker.done(request::REM_MEM_REG, &[u64s(&[0]), region(0, MEMORY, USER, 0)].concat())?;
            to_attacked(f)?;
            attacker.kick(TX)
        },
    ),
    case("A36 33rd region", "ADD_MEM_REG beyond the slots", Wanted::Refused, |f| {
        let attacker = f.negotiated()?;
        for slot in 0..33 {
            let at = slot * PAGE;
            let payload = [u64s(&[0]), region(at, PAGE, USER + at, at)].concat();
            let answer = attacker.wire.ask(request::ADD_MEM_REG, &payload, &[attacker.memory.as_fd()])?;
            let wanted = if slot < 32 { Answer::Done } else { Answer::Refused };
            ensure!(answer == wanted, "slot {slot}: {answer:?}");
        }
        Ok(())
    }),
    case("A36 region never added", "REM_MEM_REG of what is not there, and of a part", Wanted::Refused, |f| {
        let attacker = f.with_memory()?;
        for wrong in
            [region(1 << 30, MEMORY, USER, 0), region(0, PAGE, USER, 0), region(0, MEMORY, USER + 1, 0)]
        {
            attacker.refused(request::REM_MEM_REG, &[u64s(&[0]), wrong].concat())?;
        }
        Ok(())
    }),
    case("A36 the same region twice", "ADD_MEM_REG of what is there", Wanted::Refused, |f| {
        let attacker = f.with_memory()?;
        let payload = [u64s(&[0]), region(0, MEMORY, USER, 0)].concat();
        attacker.refused_fd(request::ADD_MEM_REG, &payload, &attacker.memory)
    }),
    case("A21 rings before memory", "SET_VRING_ADDR with no memory at all", Wanted::Refused, |f| {
        let attacker = f.negotiated()?;
        attacker.done(request::SET_VRING_NUM, &u32s(&[RX, 256]))?;
        attacker.refused(request::SET_VRING_ADDR, &addresses(RX, 0x1_0000, 0x1_4000, 0x1_8000))
    }),
];

/// A table that says `count` regions, has `there` and comes with `fds` descriptors.
fn table(field: &mut Field, count: u32, there: u64, fds: usize) -> Result<()> {
    let attacker = field.negotiated()?;
    let regions = (0..there).flat_map(|i| region(i * PAGE, PAGE, USER + i * PAGE, i * PAGE));
    let payload: Vec<u8> = u32s(&[count, 0]).into_iter().chain(regions).collect();
    let fds = vec![attacker.memory.as_fd(); fds];
    let answer = attacker.wire.ask(request::SET_MEM_TABLE, &payload, &fds)?;
    ensure!(matches!(answer, Answer::Refused | Answer::Closed), "{answer:?}");
    Ok(())
}

fn bad(field: &mut Field, region: &[u8]) -> Result<()> {
    field.negotiated()?.table_refused(region)
}

fn not_memory(field: &mut Field, fd: &OwnedFd) -> Result<()> {
    let answer = field.negotiated()?.table_of(&region(0, PAGE, USER, 0), fd)?;
    ensure!(matches!(answer, Answer::Refused | Answer::Closed), "{answer:?}");
    Ok(())
}

fn two(field: &mut Field, first: Vec<u8>, second: Vec<u8>) -> Result<()> {
    let attacker = field.negotiated()?;
    let payload = [u32s(&[2, 0]), first, second].concat();
    let fd = attacker.memory.as_fd();
    let answer = attacker.wire.ask(request::SET_MEM_TABLE, &payload, &[fd, fd])?;
    ensure!(matches!(answer, Answer::Refused | Answer::Closed), "{answer:?}");
    Ok(())
}

/// The witness sends a frame to the attacked port.
pub(super) fn to_attacked(field: &mut Field) -> Result<()> {
    let frame = udp4(field.witness, field.attacked, b"for the attacker");
    ensure!(field.nic.send(&frame, Default::default())?, "the witness's ring is full");
    Ok(())
}
