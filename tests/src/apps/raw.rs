//! A TCP connection whose every byte is decided and counted by the test, from either end.

use std::{
    fs::File,
    io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use crate::mesh::Workload;

/// Longest that a client's read or write may block before the test fails.
const IO_TIMEOUT: Duration = Duration::from_secs(20);

/// One end of a TCP connection.
#[derive(Debug)]
pub struct Connection {
    stream: Arc<TcpStream>,
    /// Read from the socket and not yet consumed.
    pending: Vec<u8>,
    /// Bytes written so far.
    pub sent: u64,
    /// Bytes read so far.
    pub received: u64,
}

/// A response as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Status line and headers, with the empty line.
    pub head: String,
    /// Decoded body.
    pub body: Vec<u8>,
    /// Bytes on the wire, head and framing included.
    pub wire: u64,
}

impl Connection {
    /// Connects from inside a workload.
    pub fn open(from: &Workload, to: SocketAddr) -> Result<Self> {
        let stream = from
            .net
            .enter(|| TcpStream::connect_timeout(&to, IO_TIMEOUT))?
            .with_context(|| format!("{} cannot connect to {to}", from.name))?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        Ok(Self::new(stream)?)
    }

    /// Connects like [`Connection::open`], with options set before it connects, and from a port of its own if one is
    /// given.
    pub fn open_with(from: &Workload, to: SocketAddr, options: &[SocketOption], port: Option<u16>) -> Result<Self> {
        let stream = from
            .net
            .enter(|| connect(to, options, port))?
            .with_context(|| format!("{} cannot connect to {to} with {options:?}", from.name))?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        Ok(Self::new(stream)?)
    }

    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream: Arc::new(stream), pending: Vec::new(), sent: 0, received: 0 })
    }

    /// Returns its own address and port.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Returns the peer's address and port.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        (&*self.stream).write_all(bytes.as_ref())?;
        self.sent += bytes.as_ref().len() as u64;
        Ok(())
    }

    /// Sends each piece in a segment of its own, `pause` after the one before.
    pub fn send_pieces<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>, pause: Duration) -> io::Result<()> {
        for (number, piece) in pieces.into_iter().enumerate() {
            if number > 0 {
                sleep(pause);
            }
            self.send(piece)?;
        }
        Ok(())
    }

    /// Sends `length` zero bytes at full speed.
    pub fn send_zeros(&mut self, length: u64) -> io::Result<()> {
        static ZEROS: [u8; 1 << 18] = [0; 1 << 18];
        let mut left = length;
        while left > 0 {
            let part = left.min(ZEROS.len() as u64);
            self.send(&ZEROS[..usize::try_from(part).expect("bounded by the array")])?;
            left -= part;
        }
        Ok(())
    }

    /// Sends one byte as urgent data.
    pub fn send_urgent(&mut self, byte: u8) -> io::Result<()> {
        self.send_flagged(&[byte], libc::MSG_OOB)
    }

    /// Sends all of `bytes` from where they are; they must stay as they are until the peer has them.
    pub fn send_without_copy(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
        self.send_flagged(bytes, libc::MSG_ZEROCOPY)
    }

    fn send_flagged(&mut self, bytes: &[u8], flags: i32) -> io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            // SAFETY: pointer and length are those of a live slice.
            let sent = unsafe { libc::send(self.stream.as_raw_fd(), left.as_ptr().cast(), left.len(), flags) };
            let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
            left = &left[sent..];
            self.sent += sent as u64;
        }
        Ok(())
    }

    /// Sends a file by `sendfile`.
    pub fn send_file(&mut self, file: &File) -> io::Result<()> {
        let mut left = file.metadata()?.len();
        while left > 0 {
            // SAFETY: no offset is given.
            let sent = unsafe {
                let part = usize::try_from(left).unwrap_or(usize::MAX);
                libc::sendfile(self.stream.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), part)
            };
            let sent = u64::try_from(sent).map_err(|_| io::Error::last_os_error())?;
            if sent == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            left -= sent;
            self.sent += sent;
        }
        Ok(())
    }

    /// Moves `length` bytes from a pipe to the peer, unread.
    pub fn splice_from(&mut self, pipe: &PipeReader, length: usize) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let moved = splice(pipe, &*self.stream, left)?;
            if moved == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            left -= moved;
            self.sent += moved as u64;
        }
        Ok(())
    }

    /// Moves what comes next to an empty pipe, unread; 0 at the end of the stream.
    pub fn splice_into(&mut self, pipe: &PipeWriter) -> io::Result<usize> {
        let moved = splice(&*self.stream, pipe, 1 << 16)?;
        self.received += moved as u64;
        Ok(moved)
    }

    /// Receives the next bytes; empty at the end of the stream.
    pub fn receive_some(&mut self) -> io::Result<Vec<u8>> {
        if !self.pending.is_empty() {
            return Ok(std::mem::take(&mut self.pending));
        }
        let mut buffer = vec![0; 1 << 16];
        let length = self.read(&mut buffer)?;
        self.received += length as u64;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Discards what arrives within `patience`; returns the number of bytes.
    pub fn drain_for(&mut self, patience: Duration) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(patience))?;
        let mut buffer = vec![0; 1 << 16];
        let outcome = (&*self.stream).read(&mut buffer);
        self.stream.set_read_timeout(Some(IO_TIMEOUT))?;
        match outcome {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(0),
            Ok(length) => {
                self.received += length as u64;
                Ok(length)
            }
            Err(error) => Err(error),
        }
    }

    /// Receives exactly `length` bytes.
    pub fn receive(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.pending.len() < length {
            self.fill()?;
        }
        let rest = self.pending.split_off(length);
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    /// Receives everything up to and including `mark`.
    pub fn receive_until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.pending.windows(mark.len()).position(|window| window == mark) {
                return self.receive(at + mark.len());
            }
            self.fill()?;
        }
    }

    /// Receives like [`Connection::receive_until`], but `None` when the peer ended the connection before a single
    /// byte.
    pub fn receive_head(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.receive_until(b"\r\n\r\n") {
            Err(error) if self.pending.is_empty() && ended(&error) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Discards everything until the peer ends or resets the connection; returns the number of bytes.
    pub fn drain(&mut self) -> io::Result<u64> {
        let mut length = std::mem::take(&mut self.pending).len() as u64;
        loop {
            match self.receive_some() {
                Ok(bytes) if bytes.is_empty() => return Ok(length),
                Ok(bytes) => length += bytes.len() as u64,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(length),
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns a whole response to a request that was no HEAD: by its length, its chunks, or to the end of the stream.
    pub fn receive_response(&mut self) -> io::Result<Response> {
        let head = String::from_utf8_lossy(&self.receive_until(b"\r\n\r\n")?).into_owned();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let mut wire = head.len() as u64;
        let body = if matches!(status, 100..200 | 204 | 304) {
            Vec::new()
        } else if header(&head, "transfer-encoding").is_some() {
            let (body, framed) = self.receive_chunks()?;
            wire += framed;
            body
        } else if let Some(length) = header(&head, "content-length").and_then(|length| length.parse().ok()) {
            wire += length as u64;
            self.receive(length)?
        } else {
            let mut body = std::mem::take(&mut self.pending);
            loop {
                let more = self.receive_some()?;
                if more.is_empty() {
                    break;
                }
                body.extend(more);
            }
            wire += body.len() as u64;
            body
        };
        Ok(Response { status, head, body, wire })
    }

    /// Returns a chunked body with its trailers: decoded, and its length on the wire.
    pub fn receive_chunks(&mut self) -> io::Result<(Vec<u8>, u64)> {
        let (mut body, mut wire) = (Vec::new(), 0);
        loop {
            let line = self.receive_until(b"\r\n")?;
            wire += line.len() as u64;
            let text = String::from_utf8_lossy(&line).into_owned();
            let size = text.split([';', '\r']).next().map_or("", str::trim);
            let size = usize::from_str_radix(size, 16).map_err(|_| io::Error::other(format!("chunk size {text:?}")))?;
            if size == 0 {
                break;
            }
            body.extend(self.receive(size)?);
            self.receive(2)?;
            wire += size as u64 + 2;
        }
        loop {
            let trailer = self.receive_until(b"\r\n")?;
            wire += trailer.len() as u64;
            if trailer == b"\r\n" {
                return Ok((body, wire));
            }
        }
    }

    /// Ends the sending direction (FIN).
    pub fn finish_sending(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Sends a keep-alive probe after every so many idle seconds.
    pub fn probe_when_idle(&self, seconds: i32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
        self.set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds)?;
        self.set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds)
    }

    /// Resets the connection.
    pub fn reset(self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        self.set(libc::SOL_SOCKET, libc::SO_LINGER, linger).expect("an open TCP socket has this option");
    }

    pub(crate) fn set<T>(&self, level: i32, option: i32, value: T) -> io::Result<()> {
        set(&self.stream, level, option, value)
    }

    /// Returns a socket whose data somebody redirects by a sockmap is woken for nothing at times, and says that there
    /// are none.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let begun = Instant::now();
        loop {
            match (&*self.stream).read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && begun.elapsed() < IO_TIMEOUT => {}
                outcome => return outcome,
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 1 << 16];
        let length = self.read(&mut buffer)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.received += length as u64;
        self.pending.extend_from_slice(&buffer[..length]);
        Ok(())
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// A socket option that is a number: level, name, value.
pub type SocketOption = (i32, i32, i32);

/// For a client: delays the handshake's last ACK until the first data, which the kernel then passes to the listener's
/// hooks only.
pub const DATA_WITH_THE_ACK: SocketOption = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 1);

fn connect(to: SocketAddr, options: &[SocketOption], port: Option<u16>) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for (level, name, value) in options {
        set(&socket, *level, *name, *value)?;
    }
    if let Some(port) = port {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        net::bind(&socket, &SocketAddr::new(any, port))?;
    }
    net::connect(&socket, &to)?;
    Ok(socket.into())
}

fn set<T>(socket: &impl AsRawFd, level: i32, option: i32, value: T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("a few bytes");
    // SAFETY: the pointer and length are those of a live value.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn splice(from: &impl AsRawFd, to: &impl AsRawFd, most: usize) -> io::Result<usize> {
    let nowhere = std::ptr::null_mut();
    // SAFETY: no offsets are given.
    let moved = unsafe { libc::splice(from.as_raw_fd(), nowhere, to.as_raw_fd(), nowhere, most, 0) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Returns the value of the first header of this (lower-case) name.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Returns whether the error means that the peer has gone.
pub fn ended(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// A listening application: a thread per connection runs the handler. Dropped, it ends its connections too.
pub struct Server {
    listener: Arc<TcpListener>,
    accepting: Option<JoinHandle<()>>,
    totals: Arc<Totals>,
    open: Arc<Open>,
}

/// The connections that are still open; weak, so that a handler's drop closes the socket.
type Open = Mutex<Vec<Weak<TcpStream>>>;

/// Totals of a server's ended connections.
#[derive(Debug, Default)]
pub struct Totals {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Bytes received on connections that have ended.
    pub received: AtomicU64,
    /// Bytes sent on them.
    pub sent: AtomicU64,
}

impl Server {
    /// Listens on `port` of every address of the workload, IPv4 and IPv6. An error of a handler whose
    /// peer has left is ignored; any other is printed.
    pub fn start(
        on: &Workload,
        port: u16,
        handler: impl Fn(&mut Option<Connection>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = on
            .net
            .enter(|| TcpListener::bind(("::", port)))?
            .with_context(|| format!("{} cannot listen on port {port}", on.name))?;
        let (listener, handler, totals) = (Arc::new(listener), Arc::new(handler), Arc::new(Totals::default()));
        let open = Arc::new(Open::default());
        let accepting = {
            let (listener, totals, open) = (Arc::clone(&listener), Arc::clone(&totals), Arc::clone(&open));
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    totals.accepted.fetch_add(1, Ordering::Relaxed);
                    let connection = match Connection::new(stream) {
                        Ok(connection) => connection,
                        Err(error) => {
                            eprintln!("accepted connection: {error}");
                            continue;
                        }
                    };
                    let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                    open.retain(|stream| stream.strong_count() > 0);
                    open.push(Arc::downgrade(&connection.stream));
                    let (handler, totals) = (Arc::clone(&handler), Arc::clone(&totals));
                    thread::spawn(move || serve(connection, &*handler, &totals));
                }
            })
        };
        Ok(Self { listener, accepting: Some(accepting), totals, open })
    }

    /// Returns the totals of its ended connections.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: no pointers; wakes the accepting thread with an error.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
            // The peer may have ended it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(
    connection: Connection,
    handler: &(impl Fn(&mut Option<Connection>) -> io::Result<()> + Send + Sync),
    totals: &Totals,
) {
    let mut connection = Some(connection);
    match handler(&mut connection) {
        Err(error) if !ended(&error) => eprintln!("application: {error}"),
        _ => {}
    }
    if let Some(connection) = connection {
        totals.received.fetch_add(connection.received, Ordering::Relaxed);
        totals.sent.fetch_add(connection.sent, Ordering::Relaxed);
    }
}
