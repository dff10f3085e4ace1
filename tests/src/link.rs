//! What ip(8) of some distributions cannot set, and what size the packets are that come.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::Arc,
};

use anyhow::{Context, Result};

use crate::{mesh::Workload, net::finish};

/// Source: kernel `include/uapi/linux/if_link.h`; older kernels pass over it.
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;

/// Sets the largest packet that is passed to a link of this namespace for IPv4.
pub fn set_ipv4_gso(link: &str, size: u32) -> io::Result<()> {
    let name = CString::new(link)?;
    // SAFETY: a string that ends; the descriptor is new.
    let (index, socket) = unsafe {
        let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        (libc::if_nametoindex(name.as_ptr()), OwnedFd::from_raw_fd(socket))
    };
    // struct nlmsghdr, struct ifinfomsg, struct rtattr
    let flags = u32::from(libc::RTM_NEWLINK) | ((libc::NLM_F_REQUEST | libc::NLM_F_ACK).cast_unsigned()) << 16;
    let mut message = [40, flags, 0, 0, 0, index, 0, 0, 8 | u32::from(IFLA_GSO_IPV4_MAX_SIZE) << 16, size];
    let mut answer = [0_i32; 64];
    // SAFETY: lengths are those of the arrays.
    let got = unsafe {
        let sent = libc::send(socket.as_raw_fd(), message.as_mut_ptr().cast(), size_of_val(&message), 0);
        if sent < 0 {
            sent
        } else {
            libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), size_of_val(&answer), 0)
        }
    };
    match (got, answer[4]) {
        (..0, _) => Err(io::Error::last_os_error()),
        // struct nlmsgerr
        (_, 0) => Ok(()),
        (_, error) => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Counts packets of TCP over IPv4 that a workload receives, of some lengths.
#[derive(Debug)]
pub struct Seen {
    workload: Arc<Workload>,
    lengths: String,
}

impl Seen {
    /// Lengths as iptables(8) writes them: `--length 3000:65535`.
    pub fn new(workload: &Arc<Workload>, lengths: &str) -> Result<Self> {
        let seen = Self { workload: Arc::clone(workload), lengths: lengths.to_owned() };
        seen.iptables(&format!("-I {}", seen.rule()))?;
        Ok(seen)
    }

    /// Returns the number of packets so far.
    pub fn packets(&self) -> Result<u64> {
        let listed = self.iptables("-nvxL INPUT")?;
        let first = listed.lines().nth(2).and_then(|rule| rule.split_whitespace().next());
        first.and_then(|packets| packets.parse().ok()).with_context(|| format!("no packets counted in {listed}"))
    }

    fn rule(&self) -> String {
        format!("INPUT -p tcp -m length {}", self.lengths)
    }

    fn iptables(&self, arguments: &str) -> Result<String> {
        finish(self.workload.command("iptables-legacy")?.args(arguments.split(' ')), "")
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if let Err(error) = self.iptables(&format!("-D {}", self.rule())) {
            eprintln!("{error:#}");
        }
    }
}
