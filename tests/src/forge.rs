//! Forged segments, sent from a pod in the name of one end of an open connection.

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

/// Fields of a forged segment.
#[derive(Clone, Copy, Debug)]
pub struct Forged {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledged sequence number.
    pub ack: u32,
    /// Flags above.
    pub flags: u8,
}

/// A kind of forgery: builds, from the next sequence numbers sent and received, a segment that `by` varies. Returns the
/// segment and the length of its payload.
pub type Claim = fn(seq: u32, ack: u32, by: u32) -> (Forged, usize);

/// Forgeries for a connection of which little was read, so that its window is some 64 KiB: TCP accepts none of them.
pub const CLAIMS: [(&str, Claim); 10] = [
    ("behind the window", |seq, ack, by| (forged(seq.wrapping_add(100_000 + by % 10_000), ack, ACK), 20)),
    ("far ahead", |seq, ack, _| (forged(seq.wrapping_add(1 << 28), ack, ACK), 1000)),
    ("beyond what is kept", |seq, ack, _| (forged(seq.wrapping_add(6 << 20), ack, ACK), 100)),
    ("acknowledges what was not sent", |seq, ack, by| (forged(seq, ack.wrapping_add(1 + by % (1 << 30)), ACK), 100)),
    ("acknowledges what is long over", |seq, ack, _| (forged(seq, ack.wrapping_sub(1 << 30), ACK), 100)),
    ("resets inside the window", |seq, ack, by| (forged(seq.wrapping_add(1 + by % 10_000), ack, RST), 0)),
    ("ends far ahead", |seq, ack, _| (forged(seq.wrapping_add(1 << 25), ack, ACK | FIN), 0)),
    ("acknowledges nothing", |seq, ack, _| (forged(seq, ack, 0), 100)),
    ("known", |seq, ack, _| (forged(seq.wrapping_sub(100), ack, ACK), 100)),
    ("synchronises", |seq, ack, by| (forged(seq.wrapping_add(by), ack, SYN | ACK), 0)),
];

fn forged(seq: u32, ack: u32, flags: u8) -> Forged {
    Forged { seq, ack, flags }
}

/// Forges segments from one address and port to another, IPv4.
#[derive(Debug)]
pub struct Forger {
    socket: OwnedFd,
    from: SocketAddrV4,
    to: SocketAddrV4,
    /// The next numbers of the connection, sent and received.
    numbers: (u32, u32),
}

impl Forger {
    /// Opens a raw socket in the pod with the address `from`.
    pub fn new(pod: &Workload, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        let (from, to) = (ipv4(from)?, ipv4(to)?);
        let socket = pod.net.enter(raw_socket)?.context("a raw socket")?;
        Ok(Self { socket, from, to, numbers: (0, 0) })
    }

    /// Forges segments of this end of a connection, which is idle meanwhile.
    pub fn of(pod: &Workload, connection: &Connection) -> Result<Self> {
        let numbers = numbers(connection).context("sequence numbers")?;
        Ok(Self { numbers, ..Self::new(pod, connection.local()?, connection.peer()?)? })
    }

    /// Makes a claim.
    pub fn claim(&self, claim: Claim, number: u32) -> Result<()> {
        let (seq, ack) = self.numbers;
        let (forged, length) = claim(seq, ack, number.wrapping_mul(7919));
        let payload = b"GET /forged HTTP/1.1\r\n\r\n".repeat(42);
        self.send(&forged, &payload[..length]).context("a forged segment")
    }

    /// Sends one.
    pub fn send(&self, forged: &Forged, payload: &[u8]) -> io::Result<()> {
        let packet = self.packet(forged, payload);
        let to = SocketAddrV4::new(*self.to.ip(), 0);
        rustix::net::sendto(&self.socket, &packet, SendFlags::empty(), &to)?;
        Ok(())
    }

    /// Returns an IPv4 header (RFC 791 section 3.1; the kernel fills in checksum and length) and TCP (RFC 9293 section
    /// 3.1).
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

/// Returns the Internet checksum (RFC 1071).
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

/// Returns the next sequence numbers of a socket's end, sent and received.
fn numbers(connection: &Connection) -> io::Result<(u32, u32)> {
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

/// Has the kernel count and time every program's runs while it is open.
#[derive(Debug)]
pub struct Timed(String);

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Timed {
    /// Switches the statistics on.
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
