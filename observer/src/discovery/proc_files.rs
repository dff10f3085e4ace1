//! The files of /proc that discovery reads, below a root of choice. A process may vanish between any two reads: that is
//! an ordinary error here. What a process controls (environment, arguments) is capped in size and free of control
//! characters afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use procfs::{FromRead, process::Stat};

use super::{Error, addresses};

/// Most bytes read of a file whose content a process controls.
const MOST_BYTES: u64 = 1 << 20;
/// Most bytes of a name: as many as the longest in Kubernetes has (a DNS subdomain).
pub const MOST_NAME: usize = 253;

/// A proc file system.
#[derive(Clone, Debug)]
pub struct ProcFiles {
    root: PathBuf,
}

/// A process's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// File name, or the command name where the link cannot be read.
    pub name: String,
    /// The whole path, without the mark of a file replaced by an upgrade.
    pub path: Option<PathBuf>,
}

/// A listening TCP socket of a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Local address, unspecified for all of them.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// Socket inode, as in the links of `/proc/PID/fd`.
    pub inode: u64,
}

/// The listening TCP sockets of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// The sockets.
    pub listeners: Vec<Listener>,
    /// Whether they are the process's own, or all of its network namespace because its descriptors cannot be read.
    pub own: bool,
}

/// Which of the wanted ports a process listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    /// The ports.
    pub ports: BTreeSet<u16>,
    /// Whether they were found among the process's own descriptors, or only in its network namespace because the
    /// descriptors cannot be read.
    pub own: bool,
}

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// What of the file system is mounted, relative to its root.
    pub root: String,
    /// Type, as `cgroup2`.
    pub file_system: String,
    /// Options of the file system (not of the mount).
    pub options: String,
}

impl ProcFiles {
    /// The proc file system mounted at `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Every process id now there.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        let unreadable = |reason| Error::Proc { path: self.root.clone(), reason };
        let entries = fs::read_dir(&self.root).map_err(unreadable)?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// The process's program; the kernel's command name where the link is not ours to read.
    pub fn executable(&self, pid: u32) -> io::Result<Executable> {
        match fs::read_link(self.path(pid, "exe")) {
            Ok(path) => Ok(executable(&path)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let name = printable_text(self.read(pid, "comm")?.trim_ascii_end(), MOST_NAME).unwrap_or_default();
                Ok(Executable { name, path: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Start time in clock ticks since boot.
    pub fn start_time(&self, pid: u32) -> io::Result<u64> {
        Stat::from_read(File::open(self.path(pid, "stat"))?).map(|stat| stat.starttime).map_err(io::Error::other)
    }

    /// Those variables of the environment that `wanted` names, with the most bytes that a value may have.
    pub fn environment(
        &self,
        pid: u32,
        wanted: impl Fn(&str) -> Option<usize>,
    ) -> io::Result<BTreeMap<String, String>> {
        Ok(environment(&self.read(pid, "environ")?, wanted))
    }

    /// Node type of Envoy's `--service-node TYPE~ADDRESS~ID~DOMAIN`.
    pub fn node_type(&self, pid: u32) -> io::Result<Option<String>> {
        Ok(node_type(&self.read(pid, "cmdline")?))
    }

    /// cgroup v2 path as this process's reader sees it.
    pub fn cgroup(&self, pid: u32) -> io::Result<String> {
        let lines = self.read(pid, "cgroup")?;
        let path = super::cgroup::unified_path(&String::from_utf8_lossy(&lines)).map(str::to_owned);
        path.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is in no cgroup v2 hierarchy"))
    }

    /// Inode of the process's network namespace.
    pub fn netns_inode(&self, pid: u32) -> io::Result<u64> {
        let link = fs::read_link(self.path(pid, "ns/net"))?;
        bracketed(&link, "net:").ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no namespace link"))
    }

    /// Inode of the reader's own network namespace.
    pub fn own_netns_inode(&self) -> Option<u64> {
        bracketed(&fs::read_link(self.root.join("self/ns/net")).ok()?, "net:")
    }

    /// Port of its metrics page on a control-plane process's command line.
    pub fn monitoring_port(&self, pid: u32) -> io::Result<Option<u16>> {
        Ok(monitoring_port(&self.read(pid, "cmdline")?))
    }

    /// Addresses of the process's network namespace, without loopback and link-local ones.
    pub fn addresses(&self, pid: u32) -> Vec<IpAddr> {
        // Each of them is missing where its protocol is.
        let [trie, route, inet6] =
            ["net/fib_trie", "net/route", "net/if_inet6"].map(|file| self.read(pid, file).unwrap_or_default());
        addresses::of_namespace(&trie, &route, &inet6)
    }

    /// Which of `wanted` the process listens on over TCP.
    pub fn listening(&self, pid: u32, wanted: &[u16]) -> io::Result<Listening> {
        let Sockets { listeners, own } = self.sockets(pid, |port| wanted.contains(&port))?;
        Ok(Listening { ports: listeners.into_iter().map(|listener| listener.port).collect(), own })
    }

    /// The process's listening TCP sockets on those ports that are `wanted`.
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
        let own = match fs::read_dir(self.path(pid, "fd")) {
            Ok(descriptors) => {
                let sockets: BTreeSet<u64> = descriptors
                    .flatten()
                    .filter_map(|descriptor| bracketed(&fs::read_link(descriptor.path()).ok()?, "socket:"))
                    .collect();
                found.retain(|listener| sockets.contains(&listener.inode));
                true
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
            Err(error) => return Err(error),
        };
        Ok(Sockets { listeners: found, own })
    }

    /// The mounts that this process itself sees.
    pub fn own_mounts(&self) -> Result<Vec<Mount>, Error> {
        let path = self.root.join("self/mountinfo");
        fs::read(&path).map(|lines| mounts(&lines)).map_err(|reason| Error::Proc { path, reason })
    }

    /// This process's own cgroup v2 path.
    pub fn own_cgroup(&self) -> Option<String> {
        let lines = fs::read_to_string(self.root.join("self/cgroup")).ok()?;
        super::cgroup::unified_path(&lines).map(str::to_owned)
    }

    /// Whether the process ids here are those of our own pid namespace, so that system calls may use them.
    pub fn is_own_namespace(&self) -> bool {
        fs::read_link(self.root.join("self")).is_ok_and(|link| link == Path::new(&std::process::id().to_string()))
    }

    /// The process's root directory, as it sees it.
    pub fn root_directory(&self, pid: u32) -> PathBuf {
        self.path(pid, "root")
    }

    fn path(&self, pid: u32, file: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(file)
    }

    fn read(&self, pid: u32, file: &str) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(self.path(pid, file))?.take(MOST_BYTES).read_to_end(&mut content)?;
        Ok(content)
    }
}

/// The `hidepid` option of the proc file system at `root`, if it hides anything.
pub fn hidepid(mounts: &[Mount], root: &Path) -> Option<String> {
    let mount = mounts.iter().rev().find(|mount| mount.file_system == "proc" && mount.mount_point == root)?;
    let value = mount.options.split(',').find_map(|option| option.strip_prefix("hidepid="))?;
    (!matches!(value, "0" | "off")).then(|| value.to_owned())
}

/// Text of at most so many bytes without anything that could end a line; a value that is otherwise was made to mislead and is
/// no value.
pub fn printable_text(bytes: &[u8], most: usize) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    is_printable(text, most).then(|| text.to_owned())
}

/// Whether [`printable_text`] would take it.
pub fn is_printable(text: &str, most: usize) -> bool {
    let ends_a_line = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    !text.is_empty() && text.len() <= most && !text.chars().any(ends_a_line)
}

/// Lines of mountinfo; one that cannot be understood is passed over [proc_pid_mountinfo(5)].
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

/// Undoes the kernel's `\040` for space, tab, newline and backslash.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()).filter(u8::is_ascii) {
            Some(byte) => {
                text.push(byte.into());
                text.push_str(&part[3..]);
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
    let name = path.file_name().and_then(|name| printable_text(name.as_encoded_bytes(), MOST_NAME)).unwrap_or_default();
    Executable { name, path: Some(path) }
}

/// Those variables of an environment that `wanted` names, with the most bytes that a value may have.
pub fn environment(bytes: &[u8], wanted: impl Fn(&str) -> Option<usize>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for variable in bytes.split(|&byte| byte == 0) {
        let Some(equals) = variable.iter().position(|&byte| byte == b'=') else { continue };
        let (name, value) = (&variable[..equals], &variable[equals + 1..]);
        let Some(name) = printable_text(name, MOST_NAME) else { continue };
        let Some(most) = wanted(&name) else { continue };
        if let Some(value) = printable_text(value, most) {
            // As getenv(3): the first one counts.
            variables.entry(name).or_insert(value);
        }
    }
    variables
}

/// Of the option `--service-node` in a command line.
pub fn node_type(arguments: &[u8]) -> Option<String> {
    printable_text(argument(arguments, b"--service-node")?.split(|&byte| byte == b'~').next()?, MOST_NAME)
}

/// What istiod, galley, mixer and citadel call it, as an address with a port or as a port.
pub fn monitoring_port(arguments: &[u8]) -> Option<u16> {
    let options: [&[u8]; 3] = [b"--monitoringAddr", b"--monitoringPort", b"--monitoring-port"];
    let value = options.into_iter().find_map(|option| argument(arguments, option))?;
    std::str::from_utf8(value.rsplit(|&byte| byte == b':').next()?).ok()?.parse().ok()
}

/// The value of an option, as `--option value` or `--option=value`.
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

/// The listening sockets of `/proc/PID/net/tcp` or `tcp6`. The kernel lists them before all others, so that reading ends
/// at the first connection however many there are.
pub fn listeners(lines: impl BufRead) -> io::Result<Vec<Listener>> {
    const LISTEN: &str = "0A";
    let mut found = Vec::new();
    for line in lines.take(MOST_BYTES).split(b'\n').skip(1) {
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

/// The kernel prints an address's bytes as one number of its own, or as four.
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

/// The number in a link as `socket:[123]`.
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
        let text = "x".repeat(MOST_NAME);
        assert_eq!(printable_text(text.as_bytes(), MOST_NAME).as_ref(), Some(&text));
        assert_eq!(printable_text(format!("{text}x").as_bytes(), MOST_NAME), None);
        assert_eq!(node_type(format!("envoy\0--service-node={text}x~").as_bytes()), None);
        for line_end in ["a\nb", "a\u{85}b", "a\u{2028}b", "a\u{2029}b"] {
            assert_eq!(printable_text(line_end.as_bytes(), MOST_NAME), None, "{line_end:?}");
        }
    }

    #[test]
    fn files_that_do_not_end_are_read_so_far_and_no_further() {
        let root = tempfile::tempdir().unwrap();
        let process = root.path().join("7");
        fs::create_dir_all(process.join("net")).unwrap();
        let begins: [(&str, &[u8]); 5] = [
            ("environ", b"POD_NAME=a\0"),
            ("cmdline", b"envoy\0--service-node\0sidecar~\0"),
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
        assert_eq!(files.read(7, "environ").unwrap().len() as u64, MOST_BYTES);
        assert_eq!(
            files.environment(7, |_| Some(9)).unwrap(),
            BTreeMap::from([("POD_NAME".to_owned(), "a".to_owned())])
        );
        assert_eq!(files.node_type(7).unwrap().as_deref(), Some("sidecar"));
        assert_eq!(files.cgroup(7).unwrap(), "/a");
        assert_eq!(files.sockets(7, |port| port == 9).unwrap().listeners, []);
    }

    #[test]
    fn what_is_kept_of_a_full_environment_is_short() {
        let wanted = |name: &str| super::super::process::wanted(name);
        let names = ["POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT", "ISTIO_METAJSON_LABELS", "ISTIO_META_OWNER"];
        let variable = |number: usize| format!("{}=x{number}\0", names.get(number).unwrap_or(&"ISTIO_META_X"));
        let environ: String = (0..80_000).map(variable).collect();
        assert_eq!(environment(environ.as_bytes(), wanted).len(), names.len(), "others are not kept");
        for most in [MOST_NAME, super::super::pod_labels::MOST_BYTES] {
            let long = |length: usize| format!("ISTIO_METAJSON_LABELS={0}\0POD_NAME={0}\0", "x".repeat(length));
            let kept = environment(long(most).as_bytes(), wanted);
            assert!(kept.contains_key("ISTIO_METAJSON_LABELS"));
            assert_eq!(kept.contains_key("POD_NAME"), most == MOST_NAME);
        }
        assert!(environment(format!("POD_NAME={}\0", "x".repeat(1 << 20)).as_bytes(), wanted).is_empty());
    }

    #[test]
    fn finds_the_node_type() {
        for (arguments, expected) in [
            (&b"envoy\0-c\0x\0--service-node\0router~10.0.0.1~gw.istio-system~istio-system.svc\0"[..], Some("router")),
            (b"envoy\0--service-node=sidecar~10.0.0.1~a.b~b.svc", Some("sidecar")),
            (b"envoy\0--service-node-x\0router~", None),
            (b"envoy\0--service-node", None),
            (b"", None),
        ] {
            assert_eq!(node_type(arguments).as_deref(), expected);
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
                let _ = executable(Path::new(&*String::from_utf8_lossy(input)));
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
