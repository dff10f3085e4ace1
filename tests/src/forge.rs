//! Segments that no TCP made, sent from a pod in the name of one end of a connection that is open.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto};

use crate::{apps::raw::Connection, mesh::Workload};

/// Flag of a TCP header.
pub const FIN: u8 = 1;
/// Flag of a TCP header.
pub const SYN: u8 = 2;
/// Flag of a TCP header.
pub const RST: u8 = 4;
/// Flag of a TCP header.
pub const ACK: u8 = 16;

/// What stands in a forged segment.
#[derive(Clone, Copy, Debug)]
pub struct Forged {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledged sequence number.
    pub ack: u32,
    /// Flags above.
    pub flags: u8,
}

/// Forges segments from one address and port to another, IPv4.
#[derive(Debug)]
pub struct Forger {
    socket: OwnedFd,
    from: SocketAddrV4,
    to: SocketAddrV4,
}

impl Forger {
    /// In a pod that `from` is an address of.
    pub fn new(pod: &Workload, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        let (from, to) = (ipv4(from)?, ipv4(to)?);
        let socket = pod.net.enter(raw_socket)?.context("a raw socket")?;
        Ok(Self { socket, from, to })
    }

    /// Sends one.
    pub fn send(&self, forged: &Forged, payload: &[u8]) -> io::Result<()> {
        let packet = self.packet(forged, payload);
        let to = SocketAddrV4::new(*self.to.ip(), 0);
        rustix::net::sendto(&self.socket, &packet, SendFlags::empty(), &to)?;
        Ok(())
    }

    /// IPv4 (RFC 791 section 3.1), whose checksum and length the kernel fills in, and TCP (RFC 9293 section 3.1).
    fn packet(&self, forged: &Forged, payload: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(20 + payload.len());
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(forged.seq.to_be_bytes());
        tcp.extend(forged.ack.to_be_bytes());
        tcp.extend([5 << 4, forged.flags, 2, 0, 0, 0, 0, 0]);
        tcp.extend(payload);
        let length = u16::try_from(tcp.len()).expect("a segment").to_be_bytes();
        let (from, to) = (self.from.ip().octets(), self.to.ip().octets());
        let sum = checksum(&[&from[..], &to, &[0, 6], &length, &tcp].concat());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0], &from[..], &to, &tcp].concat()
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

fn raw_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?)
}

fn ipv4(address: SocketAddr) -> Result<SocketAddrV4> {
    match (address, address.ip().to_canonical()) {
        (SocketAddr::V4(address), _) => Ok(address),
        (SocketAddr::V6(v6), IpAddr::V4(ip)) => Ok(SocketAddrV4::new(ip, v6.port())),
        _ => bail!("{address} is not of IPv4"),
    }
}

/// The next sequence numbers of a socket's end, sent and received.
pub fn numbers(connection: &Connection) -> io::Result<(u32, u32)> {
    const NEITHER: i32 = 0;
    const RECEIVED: i32 = 1;
    const SENT: i32 = 2;
    /// Without a probe of the window.
    const OFF: i32 = -1;
    let set = |option: i32, value: i32| connection.set(libc::IPPROTO_TCP, option, value);
    set(libc::TCP_REPAIR, 1)?;
    let number = |queue: i32| -> io::Result<u32> {
        set(libc::TCP_REPAIR_QUEUE, queue)?;
        let (mut value, mut length) = (0u32, 4);
        // SAFETY: pointer and length are those of a live value.
        let result = unsafe {
            let fd = connection.as_raw_fd();
            libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, (&raw mut value).cast(), &raw mut length)
        };
        if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
    };
    let numbers = number(SENT).and_then(|sent| Ok((sent, number(RECEIVED)?)));
    set(libc::TCP_REPAIR_QUEUE, NEITHER)?;
    set(libc::TCP_REPAIR, OFF)?;
    numbers
}

/// While this lives, the kernel counts and times every program's runs.
#[derive(Debug)]
pub struct Timed(String);

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Timed {
    /// Switches it on.
    pub fn programs() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS).context(STATISTICS)?;
        fs::write(STATISTICS, "1").context(STATISTICS)?;
        Ok(Self(before))
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        if let Err(error) = fs::write(STATISTICS, self.0.trim()) {
            eprintln!("{STATISTICS}: {error}");
        }
    }
}
