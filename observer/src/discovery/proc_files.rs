//! Reads /proc below a configurable root. A process may vanish between any two reads, which is an ordinary error. Data
//! that a process controls (environment, arguments) is limited in size and free of control characters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use procfs::{
    FromBufReadSI, FromRead, current_system_info,
    net::{TcpNetEntries, TcpNetEntry, TcpState},
    process::Stat,
};
use rustix::fs::{CWD, Mode, OFlags};

use super::{addresses, error::DiscoveryError};

/// Maximum bytes read of a file that a process controls.
const MAX_BYTES: u64 = 1 << 20;
/// Maximum bytes of a name: the longest in Kubernetes is a DNS subdomain.
pub const MAX_NAME_BYTES: usize = 253;

/// Maximum bytes read of the list of a network namespace's sockets: 100,000 of them.
const MAX_SOCKETS_BYTES: u64 = 16 << 20;
/// Number of sockets that are parsed at a time.
const SOCKETS_AT_ONCE: usize = 512;
/// Maximum bytes read of a command line if only the first arguments matter.
const MAX_ARGUMENT_BYTES: u64 = 4 << 10;
/// Inode of the initial pid namespace [linux `include/linux/proc_ns.h`, `PROC_PID_INIT_INO`].
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A proc file system.
#[derive(Clone, Debug)]
pub struct ProcFiles {
    root: PathBuf,
    /// A process whose directory is held open.
    open_dir: Option<(u32, Arc<OwnedFd>)>,
}

/// The executable of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// File name, or the command name if the link cannot be read.
    pub name: String,
    /// The whole path, without the suffix of a file that was replaced by an upgrade.
    pub path: Option<PathBuf>,
}

impl Executable {
    /// Whether it is the dynamic loader, which runs the program in its arguments [ld.so(8)].
    #[must_use]
    pub fn is_loader(&self) -> bool {
        self.name.starts_with("ld-") || self.name.starts_with("ld.so") || self.name.starts_with("ld64.so")
    }
}

/// A listening TCP socket of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Local address; unspecified if bound to all.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// Socket inode, as in links of `/proc/PID/fd`.
    pub inode: u64,
}

/// The listening TCP sockets of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// The sockets.
    pub listeners: Vec<Listener>,
    /// Whether they belong to the process, rather than to its whole network namespace because its descriptors cannot be
    /// read.
    pub own: bool,
}

/// A line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Mount point.
    pub mount_point: PathBuf,
    /// Mounted subtree, relative to the root of the file system.
    pub root: String,
    /// Type, e.g. `cgroup2`.
    pub file_system: String,
    /// Options of the file system (not of the mount).
    pub options: String,
}

impl ProcFiles {
    /// Creates a reader of the proc file system at `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root, open_dir: None }
    }

    /// Returns a reader that holds a process's directory open: reads concern that process only, and fail once it has
    /// ended, even if its pid is reused.
    pub fn with_open_dir(&self, pid: u32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, self.root.join(pid.to_string()), flags, Mode::empty())?;
        Ok(Self { root: self.root.clone(), open_dir: Some((pid, Arc::new(directory))) })
    }

    /// Returns all process ids.
    pub fn pids(&self) -> Result<Vec<u32>, DiscoveryError> {
        let unreadable = |reason| DiscoveryError::Proc { path: self.root.clone(), reason };
        let entries = fs::read_dir(&self.root).map_err(unreadable)?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Returns the executable, or the kernel's command name if the link cannot be read.
    pub fn executable(&self, pid: u32) -> io::Result<Executable> {
        match fs::read_link(self.path(pid, "exe")) {
            Ok(path) => Ok(executable(&path)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let name = printable_text(self.read(pid, "comm")?.trim_ascii_end(), MAX_NAME_BYTES).unwrap_or_default();
                Ok(Executable { name, path: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the start time in clock ticks since boot.
    pub fn start_time(&self, pid: u32) -> io::Result<u64> {
        Stat::from_read(File::open(self.path(pid, "stat"))?).map(|stat| stat.starttime).map_err(io::Error::other)
    }

    /// Returns the environment variables that `max_value_bytes` selects, with values of at most that size.
    pub fn environment(
        &self,
        pid: u32,
        wanted: impl Fn(&str) -> Option<usize>,
    ) -> io::Result<BTreeMap<String, String>> {
        Ok(environment(&self.read(pid, "environ")?, wanted))
    }

    /// Returns the command line: arguments, each followed by a zero byte.
    pub fn command_line(&self, pid: u32) -> io::Result<Vec<u8>> {
        self.read(pid, "cmdline")
    }

    /// Returns the beginning of the command line.
    pub fn first_arguments(&self, pid: u32) -> io::Result<Vec<u8>> {
        self.read_at_most(pid, "cmdline", MAX_ARGUMENT_BYTES)
    }

    /// Returns the parent process; `None` for the first process of a pid namespace.
    pub fn parent(&self, pid: u32) -> io::Result<Option<u32>> {
        let stat = Stat::from_read(File::open(self.path(pid, "stat"))?).map_err(io::Error::other)?;
        Ok(u32::try_from(stat.ppid).ok().filter(|&parent| parent != 0))
    }

    /// Returns the cgroup v2 path in the reader's view.
    pub fn cgroup(&self, pid: u32) -> io::Result<String> {
        let lines = self.read(pid, "cgroup")?;
        let path = unified_path(&String::from_utf8_lossy(&lines)).map(str::to_owned);
        path.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is in no cgroup v2 hierarchy"))
    }

    /// Returns the inode of the process's network namespace.
    pub fn netns_inode(&self, pid: u32) -> io::Result<u64> {
        let link = fs::read_link(self.path(pid, "ns/net"))?;
        bracketed(&link, "net:").ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no namespace link"))
    }

    /// Returns the inode of the reader's network namespace.
    pub fn own_netns_inode(&self) -> Option<u64> {
        bracketed(&fs::read_link(self.root.join("self/ns/net")).ok()?, "net:")
    }

    /// Returns the port of the /metrics endpoint on a control-plane process's command line.
    pub fn monitoring_port(&self, pid: u32) -> io::Result<Option<u16>> {
        Ok(monitoring_port(&self.read(pid, "cmdline")?))
    }

    /// Returns the addresses of the process's network namespace, without loopback and link-local ones.
    pub fn addresses(&self, pid: u32) -> Vec<IpAddr> {
        // Each is missing if its protocol is.
        let [trie, route, inet6] =
            ["net/fib_trie", "net/route", "net/if_inet6"].map(|file| self.read(pid, file).unwrap_or_default());
        addresses::of_namespace(&trie, &route, &inet6)
    }

    /// Returns the process's listening TCP sockets on `wanted` ports.
    pub fn sockets(&self, pid: u32, wanted: impl Fn(u16) -> bool) -> io::Result<Sockets> {
        let mut found = Vec::new();
        for file in ["net/tcp", "net/tcp6"] {
            match File::open(self.path(pid, file)) {
                Ok(file) => found.extend(listeners(BufReader::new(file))?),
                // Without IPv6 there is no tcp6.
                Err(error) if error.kind() == io::ErrorKind::NotFound && file == "net/tcp6" => {}
                Err(error) => return Err(error),
            }
        }
        found.retain(|listener| wanted(listener.port));
        if found.is_empty() {
            return Ok(Sockets { listeners: found, own: true });
        }
        let own = self.open_sockets(pid)?;
        if let Some(own) = &own {
            found.retain(|listener| own.contains(&listener.inode));
        }
        Ok(Sockets { listeners: found, own: own.is_some() })
    }

    /// Returns the remote ends of the TCP connections of the process's network namespace to one of its listening ports that
    /// `is_wanted`: those that are open, and those that have ended less than a minute ago. Connections within the namespace
    /// are left out.
    ///
    /// # Errors
    /// The process has ended (`NotFound`), may not be read, or has too many sockets.
    pub fn inbound_connections(
        &self,
        pid: u32,
        is_wanted: impl Fn(u16) -> bool,
    ) -> io::Result<[BTreeSet<SocketAddr>; 2]> {
        let (mut ports, [mut open, mut ended]) = (BTreeSet::new(), [BTreeSet::new(), BTreeSet::new()]);
        // The kernel lists listening sockets before all others.
        self.each_socket(pid, |socket| {
            let port = socket.local_address.port();
            let address = socket.remote_address.ip().to_canonical();
            if matches!(socket.state, TcpState::Listen) {
                if is_wanted(port) {
                    ports.insert(port);
                }
            } else if ports.contains(&port) && !address.is_loopback() {
                let is_ended = matches!(socket.state, TcpState::TimeWait | TcpState::Close);
                let connections = if is_ended { &mut ended } else { &mut open };
                connections.insert(SocketAddr::new(address, socket.remote_address.port()));
            }
        })?;
        Ok([open, ended])
    }

    /// Passes the TCP sockets of the process's network namespace to `each`, some at a time: there may be many.
    fn each_socket(&self, pid: u32, mut each: impl FnMut(&TcpNetEntry)) -> io::Result<()> {
        for file in ["net/tcp", "net/tcp6"] {
            let file = match File::open(self.path(pid, file)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && file == "net/tcp6" => continue,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(io::ErrorKind::NotFound.into()),
                file => file?,
            };
            let mut lines = BufReader::new(file.take(MAX_SOCKETS_BYTES)).lines();
            let Some(header) = lines.next().transpose()? else { continue };
            loop {
                let some = lines.by_ref().take(SOCKETS_AT_ONCE).collect::<io::Result<Vec<_>>>()?;
                if some.is_empty() {
                    break;
                }
                let text = format!("{header}\n{}", some.join("\n"));
                let sockets = TcpNetEntries::from_buf_read(text.as_bytes(), current_system_info());
                sockets.map_err(io::Error::other)?.0.iter().for_each(&mut each);
            }
        }
        Ok(())
    }

    /// Returns the inodes of the process's open sockets; `None` if the descriptors cannot be listed or followed.
    fn open_sockets(&self, pid: u32) -> io::Result<Option<BTreeSet<u64>>> {
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        let descriptors = match fs::read_dir(self.path(pid, "fd")) {
            Err(error) if refused(&error) => return Ok(None),
            descriptors => descriptors?,
        };
        let mut sockets = BTreeSet::new();
        for descriptor in descriptors.flatten() {
            match fs::read_link(descriptor.path()) {
                Ok(link) => sockets.extend(bracketed(&link, "socket:")),
                Err(error) if refused(&error) => return Ok(None),
                // Closed meanwhile.
                Err(_) => {}
            }
        }
        Ok(Some(sockets))
    }

    /// Returns the mounts that this process sees.
    pub fn own_mounts(&self) -> Result<Vec<Mount>, DiscoveryError> {
        let path = self.root.join("self/mountinfo");
        fs::read(&path).map(|lines| mounts(&lines)).map_err(|reason| DiscoveryError::Proc { path, reason })
    }

    /// Returns this process's cgroup v2 path.
    pub fn own_cgroup(&self) -> Option<String> {
        let lines = fs::read_to_string(self.root.join("self/cgroup")).ok()?;
        unified_path(&lines).map(str::to_owned)
    }

    /// Whether the process ids are those of our own pid namespace, so that system calls can use them.
    pub fn is_own_namespace(&self) -> bool {
        fs::read_link(self.root.join("self")).is_ok_and(|link| link == Path::new(&std::process::id().to_string()))
    }

    /// Whether the process ids are those of a nested pid namespace, which differ from the kernel's; `false` if that
    /// cannot be read.
    pub fn is_nested(&self) -> bool {
        // Process 1 is the first of the namespace of this proc file system; the reader may be in another one.
        let of = |process: &str| bracketed(&fs::read_link(self.root.join(process).join("ns/pid")).ok()?, "pid:");
        let namespace = of("1").or_else(|| self.is_own_namespace().then(|| of("self")).flatten());
        namespace.is_some_and(|inode| inode != INITIAL_PID_NAMESPACE)
    }

    /// Returns the process's root directory.
    pub fn root_directory(&self, pid: u32) -> PathBuf {
        self.path(pid, "root")
    }

    /// Returns the process's working directory.
    pub fn working_directory(&self, pid: u32) -> PathBuf {
        self.path(pid, "cwd")
    }

    fn path(&self, pid: u32, file: &str) -> PathBuf {
        match &self.open_dir {
            Some((open_dir, directory)) if *open_dir == pid => descriptor_path(directory).join(file),
            _ => self.root.join(pid.to_string()).join(file),
        }
    }

    fn read(&self, pid: u32, file: &str) -> io::Result<Vec<u8>> {
        self.read_at_most(pid, file, MAX_BYTES)
    }

    fn read_at_most(&self, pid: u32, file: &str, max_bytes: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(self.path(pid, file))?.take(max_bytes).read_to_end(&mut content)?;
        Ok(content)
    }
}

/// Returns the path of the file behind a descriptor of this process.
pub fn descriptor_path(descriptor: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// Returns the `hidepid` option of the proc file system at `root`, if it hides anything.
pub fn hidepid(mounts: &[Mount], root: &Path) -> Option<String> {
    let mount = mounts.iter().rev().find(|mount| mount.file_system == "proc" && mount.mount_point == root)?;
    let value = mount.options.split(',').find_map(|option| option.strip_prefix("hidepid="))?;
    (!matches!(value, "0" | "off")).then(|| value.to_owned())
}

/// Returns text of at most `max_bytes` bytes without control characters or line separators; anything else is discarded
/// as misleading.
pub fn printable_text(bytes: &[u8], max_bytes: usize) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    is_printable(text, max_bytes).then(|| text.to_owned())
}

/// Whether [`printable_text`] accepts the text.
pub fn is_printable(text: &str, max_bytes: usize) -> bool {
    let ends_a_line = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    !text.is_empty() && text.len() <= max_bytes && !text.chars().any(ends_a_line)
}

/// Returns the path in the cgroup v2 line (`0::PATH`) of `/proc/PID/cgroup`.
pub fn unified_path(lines: &str) -> Option<&str> {
    let path = lines.lines().find_map(|line| line.strip_prefix("0::"))?;
    // The kernel marks a removed cgroup that still has a process.
    path.starts_with('/').then(|| path.strip_suffix(" (deleted)").unwrap_or(path))
}

/// Parses mountinfo; malformed lines are skipped [proc_pid_mountinfo(5)].
pub fn mounts(lines: &[u8]) -> Vec<Mount> {
    String::from_utf8_lossy(lines).lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let root = unescaped(mount.next()?);
    let mount_point = unescaped(mount.next()?).into();
    let mut file_system = file_system.split(' ');
    let kind = file_system.next()?.to_owned();
    let options = file_system.nth(1).unwrap_or_default().to_owned();
    Some(Mount { mount_point, root, file_system: kind, options })
}

/// Decodes the kernel's escapes (`\040`) for space, tab, newline and backslash.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let escape = part.split_at_checked(3);
        let byte = |octal| u8::from_str_radix(octal, 8).ok().filter(u8::is_ascii);
        match escape.and_then(|(octal, rest)| Some((byte(octal)?, rest))) {
            Some((byte, rest)) => {
                text.push(byte.into());
                text.push_str(rest);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

fn executable(link: &Path) -> Executable {
    // The kernel marks a file that was replaced by an upgrade.
    let text = link.to_string_lossy();
    let path = PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text));
    let name =
        path.file_name().and_then(|name| printable_text(name.as_encoded_bytes(), MAX_NAME_BYTES)).unwrap_or_default();
    Executable { name, path: Some(path) }
}

/// Returns the environment variables that `max_value_bytes` selects, with values of at most that size.
pub fn environment(bytes: &[u8], wanted: impl Fn(&str) -> Option<usize>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for variable in bytes.split(|&byte| byte == 0) {
        let mut parts = variable.splitn(2, |&byte| byte == b'=');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
        let Some(name) = printable_text(name, MAX_NAME_BYTES) else { continue };
        let Some(max_bytes) = wanted(&name) else { continue };
        if let Some(value) = printable_text(value, max_bytes) {
            // As in getenv(3), the first one wins.
            variables.entry(name).or_insert(value);
        }
    }
    variables
}

/// Returns the type in the option `--service-node TYPE~ADDRESS~ID~DOMAIN` of Envoy's command line.
pub fn node_type(arguments: &[u8]) -> Option<String> {
    type_of_node(argument(arguments, b"--service-node")?)
}

/// Returns the type in a node id of Istio, which has four parts [istio `pkg/model/proxy.go`, `ServiceNode`].
pub fn type_of_node(id: &[u8]) -> Option<String> {
    let parts: Vec<&[u8]> = id.split(|&byte| byte == b'~').collect();
    let [kind, _, _, _] = parts[..] else { return None };
    printable_text(kind, MAX_NAME_BYTES)
}

/// Returns the role on a command line `pilot-agent proxy ROLE`; the default is sidecar [istio
/// `pilot/cmd/pilot-agent/app/cmd.go`].
pub fn agent_role(arguments: &[u8]) -> Option<String> {
    let mut arguments = arguments.split(|&byte| byte == 0);
    // An interpreter or a loader may precede it.
    arguments.by_ref().take(4).find(|argument| file_name(argument) == b"pilot-agent")?;
    if arguments.next()? != b"proxy" {
        return None;
    }
    match arguments.next() {
        None | Some([] | [b'-', ..]) => Some("sidecar".to_owned()),
        Some(role) => printable_text(role, MAX_NAME_BYTES),
    }
}

/// Returns the names that a process was started with: argument 0, which may be a symbolic link or a wrapper, and for a
/// dynamic loader its first arguments.
pub fn invocation_names(executable: &Executable, arguments: &[u8]) -> Vec<String> {
    let max_bytes = if executable.is_loader() { 8 } else { 1 };
    let names = arguments.split(|&byte| byte == 0).take(max_bytes).map(file_name);
    names.filter_map(|name| printable_text(name, MAX_NAME_BYTES)).collect()
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

/// Envoy's bootstrap configuration on its command line [envoy `source/server/options_impl_base.cc`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Path of a file, relative to Envoy's root or working directory.
    pub path: Option<Vec<u8>>,
    /// Text that is merged over the file.
    pub text: Option<Vec<u8>>,
}

impl Configuration {
    /// Parses a command line.
    pub fn of(arguments: &[u8]) -> Self {
        let first =
            |names: [&[u8]; 2]| names.into_iter().find_map(|name| argument(arguments, name)).map(<[u8]>::to_vec);
        Self { path: first([b"--config-path", b"-c"]), text: first([b"--config-yaml"; 2]) }
    }
}

/// Returns the port of the option for the monitoring port or address of istiod, galley, mixer or citadel.
pub fn monitoring_port(arguments: &[u8]) -> Option<u16> {
    let options: [&[u8]; 3] = [b"--monitoringAddr", b"--monitoringPort", b"--monitoring-port"];
    let value = options.into_iter().find_map(|option| argument(arguments, option))?;
    std::str::from_utf8(value.rsplit(|&byte| byte == b':').next()?).ok()?.parse().ok()
}

/// Returns the value of an option, as `--option value` or `--option=value`.
fn argument<'a>(arguments: &'a [u8], option: &[u8]) -> Option<&'a [u8]> {
    let mut arguments = arguments.split(|&byte| byte == 0);
    loop {
        match arguments.next()?.strip_prefix(option) {
            Some([]) => return arguments.next(),
            Some([b'=', value @ ..]) => return Some(value),
            _ => {}
        }
    }
}

/// Parses the listening sockets of `/proc/PID/net/tcp` or `tcp6`. The kernel lists them first: reading ends at the
/// first connection.
pub fn listeners(lines: impl BufRead) -> io::Result<Vec<Listener>> {
    const LISTEN: &str = "0A";
    let mut found = Vec::new();
    for line in lines.take(MAX_BYTES).split(b'\n').skip(1) {
        let line = line?;
        let Some((state, listener)) = std::str::from_utf8(&line).ok().and_then(socket) else { continue };
        if state != LISTEN {
            break;
        }
        found.push(listener);
    }
    Ok(found)
}

fn socket(line: &str) -> Option<(&str, Listener)> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.rsplit_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some((state, Listener { address: socket_address(address)?, port: u16::from_str_radix(port, 16).ok()?, inode }))
}

/// The kernel prints an address as one or four native-endian numbers.
fn socket_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(8 * at)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// Returns the number in a link such as `socket:[123]`.
fn bracketed(link: &Path, prefix: &str) -> Option<u64> {
    link.to_str()?.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 4242 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4243 1 0000000000000000 100 0 0 10 0
   2: 0100007F:3A99 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4244 1 0000000000000000 100 0 0 10 0
   3: 00000000:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4245 1 0000000000000000 100 0 0 10 0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn finds_who_is_connected_to_a_listening_port() {
        let line = |local: &str, remote: &str, state: &str| {
            format!(
                "   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  1337        0 4242 1 0 100 0 0 10 0\n"
            )
        };
        let header =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let tcp = [
            header.to_owned(),
            line("00000000:3A9E", "00000000:0000", "0A"),
            line("00000000:1F90", "00000000:0000", "0A"),
            // From 10.0.0.7 and 10.0.0.8, one of them ended; from the pod itself; to another port; to a server.
            line("0100000A:3A9E", "0700000A:C350", "01"),
            line("0100000A:3A9E", "0800000A:C351", "06"),
            line("0100007F:3A9E", "0600007F:C352", "01"),
            line("0100000A:1F90", "0900000A:C353", "01"),
            line("0100000A:C354", "0A00000A:3A9E", "01"),
        ]
        .concat();
        let tcp6 = header.to_owned()
            + &line("0000000000000000FFFF00000100000A:3A9E", "0000000000000000FFFF00000B00000A:C355", "01");
        let root = tempfile::tempdir().unwrap();
        let net = root.path().join("7/net");
        std::fs::create_dir_all(&net).unwrap();
        std::fs::write(net.join("tcp"), &tcp).unwrap();
        let files = ProcFiles::new(root.path().to_owned());
        let text = |all: BTreeSet<SocketAddr>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let found = |files: &ProcFiles| files.inbound_connections(7, |port| port == 15006).unwrap().map(text);
        assert_eq!(found(&files), [vec!["10.0.0.7:50000"], vec!["10.0.0.8:50001"]]);
        std::fs::write(net.join("tcp6"), tcp6).unwrap();
        assert_eq!(found(&files), [vec!["10.0.0.7:50000", "10.0.0.11:50005"], vec!["10.0.0.8:50001"]]);
        assert_eq!(files.inbound_connections(8, |_| true).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(net.join("tcp"), &tcp[..tcp.len() - 70]).unwrap();
        assert!(files.inbound_connections(7, |_| true).is_err(), "cut off");
    }

    #[test]
    fn reads_listeners_up_to_the_first_connection() {
        let found: Vec<_> = listeners(TCP.as_bytes()).unwrap().iter().map(|it| (it.port, it.inode)).collect();
        assert_eq!(found, [(15001, 4242), (8080, 4243)]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn reads_addresses_of_both_families() {
        for (text, expected) in [
            ("00000000", Some("0.0.0.0")),
            ("0100007F", Some("127.0.0.1")),
            ("00000000000000000000000000000000", Some("::")),
            ("000000FD000000000000000009000000", Some("fd00::9")),
            ("0000000000000000FFFF00000100007F", Some("127.0.0.1")),
            ("100007F", None),
            ("0000000g", None),
        ] {
            assert_eq!(socket_address(text), expected.map(|address| address.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn finds_the_monitoring_port() {
        for (arguments, expected) in [
            (&b"pilot-discovery\0discovery\0--monitoringAddr=:15014\0--log\0"[..], Some(15014)),
            (b"pilot-discovery\0--monitoringAddr\x00127.0.0.1:9999\0", Some(9999)),
            (b"galley\0--monitoringPort=15014", Some(15014)),
            (b"istio_ca\0--monitoring-port\x0015014", Some(15014)),
            (b"pilot-discovery\0--monitoringAddr=", None),
            (b"pilot-discovery\0discovery", None),
        ] {
            assert_eq!(monitoring_port(arguments), expected);
        }
    }

    #[test]
    fn takes_the_executables_name_through_an_upgrade() {
        for (link, name, path) in [
            ("/usr/local/bin/envoy", "envoy", "/usr/local/bin/envoy"),
            ("/usr/local/bin/envoy (deleted)", "envoy", "/usr/local/bin/envoy"),
            ("/", "", "/"),
            ("/bin/en\nvoy", "", "/bin/en\nvoy"),
        ] {
            assert_eq!(executable(Path::new(link)), Executable { name: name.to_owned(), path: Some(path.into()) });
        }
    }

    #[test]
    fn keeps_wanted_variables_and_no_forged_ones() {
        let bytes = b"POD_NAME=a\0SECRET=x\0POD_NAMESPACE=b\nPOD_NAME=c\0POD_NAME=later\0EMPTY=\0no-equals\0";
        let variables = environment(bytes, |name| (name.starts_with("POD_") || name == "EMPTY").then_some(9));
        assert_eq!(variables, BTreeMap::from([("POD_NAME".to_owned(), "a".to_owned())]));
    }

    #[test]
    fn what_is_longer_than_it_may_be_is_no_value() {
        let text = "x".repeat(MAX_NAME_BYTES);
        assert_eq!(printable_text(text.as_bytes(), MAX_NAME_BYTES).as_ref(), Some(&text));
        assert_eq!(printable_text(format!("{text}x").as_bytes(), MAX_NAME_BYTES), None);
        assert_eq!(node_type(format!("envoy\0--service-node={text}x~a~b~c").as_bytes()), None);
        for line_end in ["a\nb", "a\u{85}b", "a\u{2028}b", "a\u{2029}b"] {
            assert_eq!(printable_text(line_end.as_bytes(), MAX_NAME_BYTES), None, "{line_end:?}");
        }
    }

    #[test]
    fn files_that_do_not_end_are_read_so_far_and_no_further() {
        let root = tempfile::tempdir().unwrap();
        let process = root.path().join("7");
        fs::create_dir_all(process.join("net")).unwrap();
        let begins: [(&str, &[u8]); 5] = [
            ("environ", b"POD_NAME=a\0"),
            ("cmdline", b"envoy\0--service-node\0sidecar~a~b~c\0"),
            ("cgroup", b"0::/a\n"),
            ("net/tcp", TCP.as_bytes()),
            ("comm", b"envoy\n"),
        ];
        for (name, begin) in begins {
            fs::write(process.join(name), begin).unwrap();
            // Without end, but for what a file may have: the rest is a hole.
            File::options().write(true).open(process.join(name)).unwrap().set_len(1 << 40).unwrap();
        }
        let files = ProcFiles::new(root.path().to_owned());
        assert_eq!(files.read(7, "environ").unwrap().len() as u64, MAX_BYTES);
        assert_eq!(
            files.environment(7, |_| Some(9)).unwrap(),
            BTreeMap::from([("POD_NAME".to_owned(), "a".to_owned())])
        );
        assert_eq!(node_type(&files.command_line(7).unwrap()).as_deref(), Some("sidecar"));
        assert_eq!(files.cgroup(7).unwrap(), "/a");
        assert_eq!(files.sockets(7, |port| port == 9).unwrap().listeners, []);
    }

    #[test]
    fn what_is_kept_of_a_full_environment_is_short() {
        let wanted = |name: &str| super::super::process::max_value_bytes(name);
        let names = ["POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT", "ISTIO_METAJSON_LABELS", "ISTIO_META_OWNER"];
        let variable = |number: usize| format!("{}=x{number}\0", names.get(number).unwrap_or(&"ISTIO_META_X"));
        let environ: String = (0..80_000).map(variable).collect();
        assert_eq!(environment(environ.as_bytes(), wanted).len(), names.len(), "others are not kept");
        for max_bytes in [MAX_NAME_BYTES, super::super::pod_labels::MAX_BYTES] {
            let long = |length: usize| format!("ISTIO_METAJSON_LABELS={0}\0POD_NAME={0}\0", "x".repeat(length));
            let kept = environment(long(max_bytes).as_bytes(), wanted);
            assert!(kept.contains_key("ISTIO_METAJSON_LABELS"));
            assert_eq!(kept.contains_key("POD_NAME"), max_bytes == MAX_NAME_BYTES);
        }
        assert!(environment(format!("POD_NAME={}\0", "x".repeat(1 << 20)).as_bytes(), wanted).is_empty());
    }

    #[test]
    fn finds_the_node_type() {
        for (arguments, expected) in [
            (&b"envoy\0-c\0x\0--service-node\0router~10.0.0.1~gw.istio-system~istio-system.svc\0"[..], Some("router")),
            (b"envoy\0--service-node=sidecar~10.0.0.1~a.b~b.svc", Some("sidecar")),
            (b"envoy\0--service-node\0test-id\0", None),
            (b"envoy\0--service-node-x\0router~a~b~c", None),
            (b"envoy\0--service-node", None),
            (b"", None),
        ] {
            assert_eq!(node_type(arguments).as_deref(), expected);
        }
    }

    #[test]
    fn finds_the_agents_role() {
        for (arguments, expected) in [
            (&b"/usr/local/bin/pilot-agent\0proxy\0router\0--domain\0x.svc\0"[..], Some("router")),
            (b"pilot-agent\0proxy\0sidecar\0", Some("sidecar")),
            (b"pilot-agent\0proxy\0waypoint\0--domain\0", Some("waypoint")),
            (b"pilot-agent\0proxy\0--domain\0x\0", Some("sidecar")),
            (b"pilot-agent\0proxy\0", Some("sidecar")),
            (b"/bin/sh\0/opt/pilot-agent\0proxy\0router\0", Some("router")),
            (b"pilot-agent\0istio-iptables\0", None),
            (b"pilot-agent\0request\0GET\0proxy\0", None),
            (b"my-pilot-agent\0proxy\0router\0", None),
            (b"", None),
        ] {
            assert_eq!(agent_role(arguments).as_deref(), expected, "{}", String::from_utf8_lossy(arguments));
        }
    }

    #[test]
    fn knows_what_a_process_is_called() {
        let executable = |name: &str| Executable { name: name.to_owned(), path: None };
        for (file, arguments, expected) in [
            ("envoy-1.30", &b"/usr/local/bin/envoy\0-c\0envoy\0"[..], &["envoy"][..]),
            (
                "ld-linux-x86-64.so.2",
                b"/lib64/ld-linux-x86-64.so.2\0/usr/bin/envoy\0",
                &["ld-linux-x86-64.so.2", "envoy"],
            ),
            ("ld.so", b"ld.so\0--argv0\0x\0./envoy\0", &["ld.so", "--argv0", "x", "envoy"]),
            ("envoy", b"", &[]),
        ] {
            assert_eq!(invocation_names(&executable(file), arguments), expected, "{file}");
        }
    }

    #[test]
    fn finds_the_configuration() {
        for (arguments, path, text) in [
            (
                &b"envoy\0-c\0etc/istio/proxy/envoy-rev.json\0--drain-time-s\x0045\0"[..],
                Some("etc/istio/proxy/envoy-rev.json"),
                None,
            ),
            (b"envoy\0--config-path\0/a\0--config-yaml\0{\"node\":{}}\0", Some("/a"), Some("{\"node\":{}}")),
            (b"envoy\0--config-path=/a", Some("/a"), None),
            (b"envoy\0-c", None, None),
        ] {
            let found = Configuration::of(arguments);
            assert_eq!(found.path.as_deref(), path.map(str::as_bytes));
            assert_eq!(found.text.as_deref(), text.map(str::as_bytes));
        }
    }

    #[test]
    fn what_is_held_stays_one_process() {
        let root = tempfile::tempdir().unwrap();
        let process = root.path().join("7");
        let start = |name: &str| {
            fs::create_dir_all(&process).unwrap();
            fs::write(process.join("comm"), name).unwrap();
            fs::write(process.join("cmdline"), name).unwrap();
        };
        start("first");
        let files = ProcFiles::new(root.path().to_owned());
        let open_dir = files.with_open_dir(7).unwrap();
        assert_eq!(open_dir.command_line(7).unwrap(), b"first");
        fs::remove_dir_all(&process).unwrap();
        start("second");
        assert_eq!(files.command_line(7).unwrap(), b"second");
        assert_eq!(open_dir.command_line(7).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_nested_pid_namespace_is_told_by_its_first_process() {
        for (first, own, nested) in [
            (Some("pid:[4026531836]"), "pid:[4026532000]", false),
            (Some("pid:[4026532000]"), "pid:[4026531836]", true),
            (None, "pid:[4026531836]", false),
            (None, "pid:[4026532000]", true),
        ] {
            let root = tempfile::tempdir().unwrap();
            let own_pid = std::process::id().to_string();
            for (process, link) in [(Some("1"), first), (Some(own_pid.as_str()), Some(own))] {
                let (Some(process), Some(link)) = (process, link) else { continue };
                fs::create_dir_all(root.path().join(process).join("ns")).unwrap();
                std::os::unix::fs::symlink(link, root.path().join(process).join("ns/pid")).unwrap();
            }
            std::os::unix::fs::symlink(&own_pid, root.path().join("self")).unwrap();
            assert_eq!(ProcFiles::new(root.path().to_owned()).is_nested(), nested, "{first:?} {own}");
        }
    }

    #[test]
    fn reads_mountinfo() {
        let lines = "22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw,hidepid=invisible,gid=5\n\
             garbage\n\
             41 31 0:38 /../x /with\\040space\\134 rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let mounts = mounts(lines.as_bytes());
        assert_eq!(mounts[1].mount_point, Path::new("/with space\\"));
        assert_eq!((mounts[1].root.as_str(), mounts[1].file_system.as_str()), ("/../x", "cgroup2"));
        assert_eq!(hidepid(&mounts, Path::new("/proc")).as_deref(), Some("invisible"));
        assert_eq!(hidepid(&mounts, Path::new("/host/proc")), None);
    }

    proptest! {
        #[test]
        fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "[ -~\\n]{0,400}") {
            for input in [bytes.as_slice(), text.as_bytes()] {
                let variables = environment(input, |_| Some(40));
                prop_assert!(variables.values().all(|value| is_printable(value, 40)));
                let _ = (node_type(input), monitoring_port(input), listeners(input), mounts(input));
                let executable = executable(Path::new(&*String::from_utf8_lossy(input)));
                let _ = (agent_role(input), invocation_names(&executable, input), Configuration::of(input));
            }
        }

        #[test]
        fn mutated_lines_never_panic(at in 0..TCP.len(), byte in any::<u8>()) {
            let mut lines = TCP.as_bytes().to_vec();
            lines[at] = byte;
            let _ = listeners(lines.as_slice());
        }
    }
}
