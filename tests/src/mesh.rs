//! The mesh: workloads in namespaces of their own on one bridge, services with virtual addresses, one authority.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, bail};

use crate::{
    bpffs,
    cgroup::{self, Cgroup},
    net::{Namespace, run},
    pki::{Authority, spiffe},
    tools,
};

/// Directory under the cgroup root, the run directory and the temporary directory that all meshes live in.
const HOME: &str = "mesh-observer-test";
/// Meshes that can exist on one machine at a time: each has a subnet of its own.
const MESHES: u8 = 250;

/// Address family of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A mesh; dropping it ends every process and removes every namespace and cgroup of it.
pub struct Mesh {
    name: String,
    index: u8,
    // Dropped in this order: processes end, then namespaces, then files, and the subnet is free again at the very end.
    cgroup: Cgroup,
    workloads: Vec<Arc<Workload>>,
    services: Vec<Service>,
    hub: Namespace,
    authority: Authority,
    directory: Directory,
    _claim: File,
}

/// One pod: namespace, addresses, and a cgroup per container.
#[derive(Debug)]
pub struct Workload {
    /// Workload name (and `app` label).
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub pod: String,
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Network namespace.
    pub net: Namespace,
    cgroup: PathBuf,
}

/// Declared protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 all the way.
    Http,
    /// HTTP/2 between the sidecars and to the application.
    Http2,
    /// Raw TCP.
    Tcp,
    /// Not declared: sniffed.
    Auto,
}

/// A Kubernetes service: a virtual address and port for a workload's port.
#[derive(Clone, Debug)]
pub struct Service {
    /// Short name.
    pub name: String,
    /// Virtual IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Virtual IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Port on the virtual address.
    pub port: u16,
    /// Port of the application.
    pub target_port: u16,
    /// Its declared protocol.
    pub protocol: Protocol,
    /// Whether sidecars call it with mutual TLS (its workload has a sidecar).
    pub mutual_tls: bool,
    /// The workload that serves it.
    pub endpoint: Arc<Workload>,
}

impl Mesh {
    /// Makes an empty mesh on a free subnet, after removing what crashed runs left behind.
    pub fn new() -> Result<Self> {
        tools::prerequisites()?;
        Self::sweep()?;
        let (index, claim) = claim()?;
        let name = format!("mo{index}");
        remove_leftovers(&name)?;
        let directory = Directory::create(home_directory().join(&name))?;
        let cgroup = Cgroup::create(cgroup::root()?.join(HOME).join(&name))?;
        let hub = Namespace::create(&format!("{name}-hub"))?;
        hub.batch(&format!(
            "link add br0 type bridge forward_delay 0\naddr add 10.77.{index}.1/24 dev br0\n\
             addr add {}/64 dev br0 nodad\nlink set br0 up",
            ipv6(0xfd77, index, 1)
        ))?;
        let authority = Authority::new()?;
        link_or_copy(&tools::envoy()?, &directory.path.join(format!("envoy-{name}")))?;
        Ok(Self {
            name,
            index,
            cgroup,
            workloads: Vec::new(),
            services: Vec::new(),
            hub,
            authority,
            directory,
            _claim: claim,
        })
    }

    /// Removes namespaces, processes, cgroups and files of meshes whose owner is gone; returns the names found.
    pub fn sweep() -> Result<Vec<String>> {
        let mut swept = Vec::new();
        for name in leftovers()? {
            let index = name.strip_prefix("mo").and_then(|index| index.parse().ok());
            // A lock that can be taken has no living owner.
            if let Some(_claim) = index.map(try_claim).transpose()?.flatten() {
                remove_leftovers(&name)?;
                swept.push(name);
            }
        }
        Ok(swept)
    }

    /// Returns the prefix of every name that this mesh uses on the machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the executable name of this mesh's sidecars, which selects them for an observer.
    pub fn executable(&self) -> String {
        format!("envoy-{}", self.name)
    }

    /// Returns the directory for configuration and logs.
    pub fn directory(&self) -> &Path {
        &self.directory.path
    }

    /// Returns the cgroup v2 directory above all pods.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Returns the authority of all identities.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Returns the services so far.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// Returns the workloads so far.
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.workloads
    }

    /// Adds a pod of one workload of that name.
    pub fn workload(&mut self, name: &str) -> Result<Arc<Workload>> {
        let number = u8::try_from(self.workloads.len()).ok().filter(|n| *n < 200).context("too many workloads")?;
        let net = Namespace::create(&format!("{}-{name}", self.name))?;
        let (ipv4, ipv6) = (Ipv4Addr::new(10, 77, self.index, 10 + number), ipv6(0xfd77, self.index, 10 + number));
        self.hub.batch(&format!(
            "link add v{number} type veth peer name eth0 netns {}\nlink set v{number} master br0 up",
            net.name()
        ))?;
        net.batch(&format!(
            "addr add {ipv4}/24 dev eth0\naddr add {ipv6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 10.77.{index}.1\nroute add default via {gateway}",
            index = self.index,
            gateway = self::ipv6(0xfd77, self.index, 1)
        ))?;
        let cgroup = self.cgroup.path().join(name);
        for container in ["app", "istio-proxy"] {
            fs::create_dir_all(cgroup.join(container)).context("container's cgroup")?;
        }
        let workload = Arc::new(Workload {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            pod: format!("{name}-7c9f8-x{number}"),
            ipv4,
            ipv6,
            net,
            cgroup,
        });
        self.workloads.push(Arc::clone(&workload));
        Ok(workload)
    }

    /// Joins the segments that arrive at a workload (GRO), which veth does if its other end sends them one by one.
    pub fn join_segments(&self, at: &Workload) -> Result<()> {
        let number =
            self.workloads.iter().position(|workload| workload.name == at.name).context("a workload of this mesh")?;
        let devices = [(&self.hub, format!("v{number}"), ["tso", "off"]), (&at.net, "eth0".to_owned(), ["gro", "on"])];
        for (net, device, [feature, state]) in devices {
            run("ip", &["netns", "exec", net.name(), "ethtool", "-K", &device, feature, state])?;
        }
        // Each waits this many nanoseconds for the next: on veth hardly two arrive at once.
        let wait = "echo 200000 > /sys/class/net/eth0/gro_flush_timeout";
        run("ip", &["netns", "exec", at.net.name(), "sh", "-c", wait]).map(drop)
    }

    /// Puts this machine on the mesh's network, so that pods can be reached from here as from a node; ends with the
    /// mesh.
    pub fn join(&self) -> Result<()> {
        let host = format!("{}-host", self.name);
        // The kernel may still be removing the link of an earlier mesh.
        let _ = run("ip", &["link", "del", &host]);
        run("ip", &["link", "add", &host, "type", "veth", "peer", "name", "host", "netns", self.hub.name()])?;
        self.hub.batch("link set host master br0 up")?;
        run("ip", &["addr", "add", &format!("10.77.{}.2/24", self.index), "dev", &host])?;
        run("ip", &["link", "set", &host, "up"]).map(drop)
    }

    /// Declares a service; sidecars started later know it.
    pub fn service(
        &mut self,
        name: &str,
        port: u16,
        endpoint: &Arc<Workload>,
        target_port: u16,
        protocol: Protocol,
    ) -> Result<Service> {
        self.declare(name, port, endpoint, target_port, protocol, true)
    }

    /// Declares a service for a workload without a sidecar, which is called in plaintext.
    pub fn plaintext_service(
        &mut self,
        name: &str,
        port: u16,
        endpoint: &Arc<Workload>,
        target_port: u16,
        protocol: Protocol,
    ) -> Result<Service> {
        self.declare(name, port, endpoint, target_port, protocol, false)
    }

    /// Returns the `[[service]]` tables of an observer's configuration that describe this mesh.
    pub fn observer_tables(&self) -> String {
        let table = |service: &Service| {
            let Service { ipv4, ipv6, port, target_port, endpoint, protocol, .. } = service;
            let protocol = match protocol {
                Protocol::Http | Protocol::Http2 => "http",
                Protocol::Tcp => "tcp",
                Protocol::Auto => "auto",
            };
            format!(
                "[[service]]\nhost = \"{}\"\naddresses = [\"{ipv4}\", \"{ipv6}\"]\nworkload = \"{}\"\n\
                 ports = [{{ port = {port}, target_port = {target_port}, protocol = \"{protocol}\" }}]\n\n",
                service.host(),
                endpoint.name
            )
        };
        self.services.iter().map(table).collect()
    }

    fn declare(
        &mut self,
        name: &str,
        port: u16,
        endpoint: &Arc<Workload>,
        target_port: u16,
        protocol: Protocol,
        mutual_tls: bool,
    ) -> Result<Service> {
        let same =
            self.services.iter().find(|service| service.name == name).map(|service| (service.ipv4, service.ipv6));
        // The first addresses are those of a cluster's own services.
        let number = u8::try_from(self.services.len() + 11).context("too many services")?;
        let (ipv4, ipv6) =
            same.unwrap_or((Ipv4Addr::new(10, 96, self.index, number), ipv6(0xfd96, self.index, number)));
        let endpoint = Arc::clone(endpoint);
        let service = Service { name: name.to_owned(), ipv4, ipv6, port, target_port, protocol, mutual_tls, endpoint };
        self.services.push(service.clone());
        Ok(service)
    }
}

impl Workload {
    /// Makes a workload without a mesh, in the network namespace of this process and at an existing address.
    pub fn alone(name: &str, ipv4: Ipv4Addr, cgroup: PathBuf) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            pod: format!("{name}-0"),
            ipv4,
            ipv6: ipv4.to_ipv6_mapped(),
            net: Namespace::own()?,
            cgroup,
        })
    }

    /// Returns the identity in its certificate.
    pub fn spiffe(&self) -> String {
        spiffe(&self.namespace, self.account())
    }

    /// Returns the service account.
    pub fn account(&self) -> &str {
        &self.name
    }

    /// Address of `family`.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ipv4.into(),
            Family::V6 => self.ipv6.into(),
        }
    }

    /// Returns the cgroup v2 directory of one of its containers.
    pub fn container(&self, name: &str) -> PathBuf {
        self.cgroup.join(name)
    }

    /// Returns a command that will run as the application does: in this pod's namespace and the `app` container's
    /// cgroup.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        self.net.place(&mut command, &self.container("app"), None)?;
        Ok(command)
    }
}

impl Service {
    /// Returns the host name.
    pub fn host(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.endpoint.namespace)
    }

    /// Returns the virtual address and port.
    pub fn address(&self, family: Family) -> SocketAddr {
        let ip: IpAddr = match family {
            Family::V4 => self.ipv4.into(),
            Family::V6 => self.ipv6.into(),
        };
        SocketAddr::new(ip, self.port)
    }

    /// Returns the URL of `path` at the virtual address.
    pub fn url(&self, family: Family, path: &str) -> String {
        format!("http://{}{path}", self.address(family))
    }
}

/// Files of one mesh; kept for reading when a test panics.
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("{} cannot be created", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("MESH_OBSERVER_KEEP").is_some() {
            eprintln!("logs are kept in {} until the next start", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

fn ipv6(prefix: u16, mesh: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(prefix, 0, 0, mesh.into(), 0, 0, 0, host.into())
}

fn home_directory() -> PathBuf {
    std::env::temp_dir().join(HOME)
}

/// Returns an index that no living process holds, and the lock that holds it.
fn claim() -> Result<(u8, File)> {
    for index in 0..MESHES {
        if let Some(claim) = try_claim(index)? {
            return Ok((index, claim));
        }
    }
    bail!("all {MESHES} test subnets are in use: end other test runs")
}

/// Returns the lock goes with its owner, however that ends.
fn try_claim(index: u8) -> Result<Option<File>> {
    let directory = Path::new("/run").join(HOME);
    fs::create_dir_all(&directory).with_context(|| format!("{} cannot be created", directory.display()))?;
    let path = directory.join(format!("{index}.lock"));
    let file = File::create(&path).with_context(|| format!("{} cannot be created", path.display()))?;
    // SAFETY: no pointers.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
    Ok(locked.then_some(file))
}

/// Returns the names of meshes of which anything is left, alive or not.
fn leftovers() -> Result<Vec<String>> {
    let directories = [PathBuf::from("/run/netns"), cgroup::root()?.join(HOME), home_directory()];
    let mut names: Vec<String> = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| name.split('-').next().map(str::to_owned))
        .filter(|name| name.strip_prefix("mo").is_some_and(|index| index.parse::<u8>().is_ok()))
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn remove_leftovers(mesh: &str) -> Result<()> {
    cgroup::remove(&cgroup::root()?.join(HOME).join(mesh))?;
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{mesh}-")) {
            run("ip", &["netns", "del", &name])?;
        }
    }
    let files = home_directory().join(mesh);
    bpffs::unmount_below(&files)?;
    match fs::remove_dir_all(files) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("old mesh's files"),
        _ => Ok(()),
    }
}

/// Links the file, or copies it: sidecars run as another user, who may not reach the original.
pub(crate) fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| format!("{} cannot be copied to {}", from.display(), to.display()))?;
    }
    Ok(())
}
