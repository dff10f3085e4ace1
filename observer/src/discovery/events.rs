//! Notifications of every `execve` on the node, from the process-events connector [linux
//! `drivers/connector/cn_proc.c`].
//!
//! It needs CAP_NET_ADMIN and the initial network, pid and user namespaces. Since Linux 6.6 the kernel filters events;
//! before, forks, exits and others arrive too and are ignored. Exits of processes come from pidfds instead, as the
//! connector reports the exit of every thread.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
        netlink::{self, SocketAddrNetlink},
        sockopt,
    },
};

/// `CN_IDX_PROC` and `CN_VAL_PROC`; the index is the multicast group too.
const PROCESS_EVENTS: u32 = 1;
const MCAST_LISTEN: u32 = 1;
const MCAST_IGNORE: u32 = 2;
const EVENT_NONE: u32 = 0;
const EVENT_EXEC: u32 = 2;
/// `nlmsghdr`, `cn_msg` and the fixed part of `proc_event` in bytes.
const NETLINK_HEADER: usize = 16;
const CONNECTOR_HEADER: usize = 20;
const EVENT_HEADER: usize = 16;
/// Size of the queue in the kernel; an event takes about 1 KiB of it.
const QUEUE_BYTES: usize = 1 << 20;

/// An event of the connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The process executed another program.
    Executed(u32),
    /// Events were lost because they were not read fast enough: a full scan is needed.
    Lost,
}

/// A subscription that ends when dropped.
#[derive(Debug)]
pub struct ExecEvents {
    socket: OwnedFd,
}

impl ExecEvents {
    /// Subscribes; the error has the reason why this node does not offer it.
    pub fn subscribe() -> Result<Self, String> {
        let refused = |error: Errno| match error {
            Errno::PERM | Errno::ACCESS => {
                "the process-events connector needs CAP_NET_ADMIN in the host's namespaces".to_owned()
            }
            Errno::PROTONOSUPPORT => "this kernel or network namespace has no process-events connector".to_owned(),
            error => format!("process-events connector: {error}"),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::CONNECTOR))
                .map_err(refused)?;
        // Without CAP_NET_ADMIN in the initial user namespace the queue keeps its default size.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE_BYTES);
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, PROCESS_EVENTS)).map_err(refused)?;
        let events = Self { socket };
        events.send(&[MCAST_LISTEN]).map_err(refused)?;
        match events.answer().map_err(refused)? {
            Some(0) => {}
            Some(error) => return Err(refused(Errno::from_raw_os_error(error))),
            None => {
                return Err("the process-events connector does not answer: the observer is not in the host's pid and \
                            user namespace"
                    .to_owned());
            }
        }
        // Filters for `execve` since 6.6. Earlier kernels ignore a request of this length.
        events.send(&[MCAST_LISTEN, EVENT_EXEC]).map_err(refused)?;
        Ok(events)
    }

    /// Returns all events since the last call, without waiting.
    pub fn read(&self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        let outcome = self.receive(|message| {
            if let Message::Executed(pid) = message {
                events.push(Event::Executed(pid));
            }
        });
        match outcome {
            Ok(()) => Ok(events),
            Err(Errno::NOBUFS) => {
                events.push(Event::Lost);
                Ok(events)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the error number of the reply to the last request, if any: the kernel replies before `send` returns.
    fn answer(&self) -> Result<Option<i32>, Errno> {
        let mut answer = None;
        self.receive(|message| {
            if let Message::Answer { to, error } = message
                && to == std::process::id() + 1
            {
                answer = Some(error);
            }
        })?;
        Ok(answer)
    }

    fn receive(&self, mut take: impl FnMut(Message)) -> Result<(), Errno> {
        let mut buffer = [0; 4096];
        loop {
            match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((_, length)) => parse(buffer.get(..length).unwrap_or(&buffer)).for_each(&mut take),
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&self, request: &[u32]) -> Result<(), Errno> {
        rustix::net::send(&self.socket, &message(request), SendFlags::empty()).map(|_| ())
    }
}

impl Drop for ExecEvents {
    fn drop(&mut self) {
        // Kernels before 6.6 count listeners by request, not by socket. Nothing can be done about an error.
        let _ = self.send(&[MCAST_IGNORE]);
    }
}

impl AsRawFd for ExecEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Executed(u32),
    Answer { to: u32, error: i32 },
}

/// Builds a request to the connector. Its acknowledgement number is our process id; that of the reply is one more.
fn message(request: &[u32]) -> Vec<u8> {
    const DONE: u16 = 3;
    let payload = size_of_val(request);
    let length = NETLINK_HEADER + CONNECTOR_HEADER + payload;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(DONE.to_ne_bytes());
    message.extend([0; 10]);
    for field in [PROCESS_EVENTS, PROCESS_EVENTS, 0, std::process::id()] {
        message.extend(field.to_ne_bytes());
    }
    message.extend((payload as u16).to_ne_bytes());
    message.extend([0; 2]);
    message.extend(request.iter().flat_map(|word| word.to_ne_bytes()));
    message
}

fn parse(mut datagram: &[u8]) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        loop {
            let length = word(datagram, 0)? as usize;
            let one = datagram.get(..length).filter(|_| length >= NETLINK_HEADER)?;
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
            if let Some(message) = one.get(NETLINK_HEADER..).and_then(parse_one) {
                return Some(message);
            }
        }
    })
}

fn parse_one(connector: &[u8]) -> Option<Message> {
    if (word(connector, 0)?, word(connector, 4)?) != (PROCESS_EVENTS, PROCESS_EVENTS) {
        return None;
    }
    let event = connector.get(CONNECTOR_HEADER..)?;
    match word(event, 0)? {
        EVENT_NONE => {
            Some(Message::Answer { to: word(connector, 12)?, error: word(event, EVENT_HEADER)?.cast_signed() })
        }
        // The calling thread, then its process.
        EVENT_EXEC => Some(Message::Executed(word(event, EVENT_HEADER + 4)?)),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_ne_bytes(*field))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(what: u32, first: u32, second: u32) -> Vec<u8> {
        message(&[what, 0, 0, 0, first, second])
    }

    #[test]
    fn reads_executions_and_answers() {
        let datagram = [event(EVENT_EXEC, 41, 40), event(1, 1, 1), event(EVENT_NONE, 1, 0)].concat();
        let messages: Vec<Message> = parse(&datagram).collect();
        assert_eq!(messages, [Message::Executed(40), Message::Answer { to: std::process::id(), error: 1 }]);
    }

    proptest! {
        #[test]
        fn never_panics_and_always_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..60, byte: u8) {
            prop_assert!(parse(&bytes).count() <= bytes.len());
            let mut datagram = event(EVENT_EXEC, 41, 40);
            if let Some(place) = datagram.get_mut(at) {
                *place = byte;
            }
            prop_assert!(parse(&datagram).count() <= 1);
        }
    }
}
