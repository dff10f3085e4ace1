//! A node: network, mount, host name and cgroup namespaces of its own, with containerd in them.
//!
//! It has no process namespace: the observer would see none of the machine's numbers of its processes, which is the
//! case of clusters in containers, and not that of a node.

use std::{
    fs::{self, File},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    cgroup,
    console::target,
    net::{finish, run},
    tools::require,
    wait::wait_until,
};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    process::{WaitOptions, set_child_subreaper, wait},
    system::sethostname,
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};

/// Numbers of the nodes; the control plane runs on the first.
pub(crate) const NODES: [u8; 2] = [1, 2];
/// Where the API server listens.
pub(crate) const SERVER: &str = "https://10.77.0.1:6443";
/// Addresses of Services.
pub(crate) const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The API server's own Service.
pub(crate) const SERVICE_ADDRESS: &str = "10.96.0.1";
/// Name of the image that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "docker.io/cluster/app:1";

/// Settings of the whole machine that a kubelet writes: a node gets copies.
const KUBELET_WRITES: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// Directories of a node's own, mounted over the machine's.
const OWN_DIRECTORIES: [(&str, &str); 3] =
    [("kubelet", "/var/lib/kubelet"), ("containerd", "/var/lib/containerd"), ("log", "/var/log")];

/// Limits the time until containerd answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns a node's name.
pub(crate) fn node_name(node: u8) -> String {
    format!("n{node}")
}

/// Returns a node's address.
pub(crate) fn address(node: u8) -> String {
    format!("10.77.0.{node}")
}

/// Returns the directory of everything that the cluster writes.
pub(crate) fn directory() -> PathBuf {
    target().join("cluster")
}

/// A node, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node(pub(crate) u8);

impl Node {
    /// Starts its namespaces and containerd; the network is made by [`connect`].
    pub(crate) fn start(self) -> Result<()> {
        let own = self.directory();
        for name in ["kubelet", "containerd", "log", "cni", "copies"] {
            fs::create_dir_all(own.join(name))?;
        }
        fs::write(own.join("cni/10-cluster.conflist"), self.network_configuration())?;
        fs::write(own.join("containerd.toml"), self.containerd_configuration())?;
        let log = File::create(own.join("node.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["become-node", &self.0.to_string()]).stdin(Stdio::null());
        // A terminal's Ctrl-C ends the cluster in order, not every process of it at once.
        let child = command.stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
        fs::write(own.join("init"), child.id().to_string())?;
        wait_until(&format!("containerd of node {}", self.0), START_TIMEOUT, || {
            self.run("ctr", &["version"]).with_context(|| format!("see {}", own.join("node.log").display())).map(drop)
        })
    }

    /// Returns a command that runs in its namespaces and its `system.slice`.
    pub(crate) fn command(self, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("enter").arg(self.0.to_string()).arg(program.as_ref());
        Ok(command)
    }

    /// Runs a command in it and returns its output.
    pub(crate) fn run(self, program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
        finish(self.command(program)?.args(arguments), "")
    }

    /// Starts a program in it that runs until the cluster ends; its output goes to `NAME.log` in the node's directory.
    pub(crate) fn spawn(self, name: &str, program: impl AsRef<Path>, arguments: &[String]) -> Result<Child> {
        let log = File::create(self.directory().join(format!("{name}.log")))?;
        let mut command = self.command("nice")?;
        command.arg("-n5").arg(program.as_ref()).args(arguments).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn().with_context(|| format!("{name} cannot be started"))
    }

    /// Ends everything in it, and removes its cgroups and what lies in its network.
    pub(crate) fn stop(self) -> Result<()> {
        cgroup::remove(&self.cgroup()?)?;
        let name = self.namespace();
        if Path::new("/run/netns").join(&name).exists() {
            run("ip", &["netns", "del", &name])?;
        }
        Ok(())
    }

    /// Returns its directory.
    pub(crate) fn directory(self) -> PathBuf {
        directory().join(node_name(self.0))
    }

    /// Returns the name of its network namespace.
    pub(crate) fn namespace(self) -> String {
        format!("mesh-observer-n{}", self.0)
    }

    fn cgroup(self) -> Result<PathBuf> {
        Ok(cgroup::root()?.join(self.namespace()))
    }

    fn network_configuration(self) -> String {
        let Self(node) = self;
        let addresses = self.directory().join("addresses");
        format!(
            r#"{{"cniVersion": "0.4.0", "name": "cluster", "plugins": [
 {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "10.244.{node}.0/24"}}]],
   "routes": [{{"dst": "0.0.0.0/0"}}], "dataDir": {addresses:?}}}}}]}}"#
        )
    }

    fn containerd_configuration(self) -> String {
        let (network, runc) = (self.directory().join("cni"), directory().join("bin/runc"));
        format!(
            r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
disable_hugetlb_controller = true
tolerate_missing_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = {network:?}
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = {runc:?}
SystemdCgroup = false
"#
        )
    }
}

/// Makes the nodes' network namespaces and the wire between them.
pub(crate) fn connect() -> Result<()> {
    for node in NODES {
        run("ip", &["netns", "add", &Node(node).namespace()])?;
    }
    let [first, second] = NODES.map(|node| Node(node).namespace());
    run("ip", &["-n", &first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &second])?;
    for node in NODES {
        let (name, own) = (Node(node).namespace(), address(node));
        let ip = |arguments: &str| {
            run("ip", &[&["-n", &name], arguments.split(' ').collect::<Vec<_>>().as_slice()].concat())
        };
        ip("link set lo up")?;
        ip(&format!("address add {own}/24 dev eth0"))?;
        ip("link set eth0 up")?;
        for other in NODES.into_iter().filter(|other| *other != node) {
            ip(&format!("route add 10.244.{other}.0/24 via {}", address(other)))?;
            // Any route: kube-proxy rewrites a Service's address before the packet takes it.
            ip(&format!("route add {SERVICE_RANGE} via {}", address(other)))?;
        }
        run("ip", &["netns", "exec", &name, "sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    }
    Ok(())
}

/// Makes this process the first of a node, until it is killed.
pub(crate) fn become_node(node: Node) -> Result<()> {
    let cgroup = node.cgroup()?;
    fs::create_dir_all(&cgroup).with_context(|| format!("{}: cannot create", cgroup.display()))?;
    fs::write(cgroup.join("cgroup.procs"), "0").context("own cgroup")?;
    enter_namespace(&Path::new("/run/netns").join(node.namespace()), LinkNameSpaceType::Network)?;
    let own = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    // SAFETY: of these flags none takes away this process' descriptors; it has one thread.
    unsafe { rustix::thread::unshare_unsafe(own) }.context("own namespaces")?;
    sethostname(node_name(node.0).as_bytes())?;
    mounts(node).context("mounts of the node")?;
    // A cgroup of version 2 with children that have controllers holds no processes itself.
    fs::create_dir_all("/sys/fs/cgroup/system.slice")?;
    fs::write("/sys/fs/cgroup/system.slice/cgroup.procs", "0").context("system.slice")?;
    set_child_subreaper(Some(rustix::process::getpid()))?;
    let configuration = node.directory().join("containerd.toml");
    let mut containerd = Command::new(require("containerd")?);
    containerd.arg("--config").arg(configuration).spawn().context("containerd")?;
    loop {
        // Without a process namespace, orphans of the node are this process' to collect.
        if wait(WaitOptions::empty()).is_err() {
            sleep(Duration::from_secs(1));
        }
    }
}

/// Replaces this process with a command in a node's namespaces.
pub(crate) fn enter(node: Node, command: &[String]) -> Result<()> {
    let init = fs::read_to_string(node.directory().join("init")).context("this node does not run")?;
    let cgroup = node.cgroup()?.join("system.slice/cgroup.procs");
    fs::write(&cgroup, "0").with_context(|| format!("{}: cannot enter", cgroup.display()))?;
    let namespaces = Path::new("/proc").join(init.trim()).join("ns");
    for (name, kind) in [
        ("cgroup", LinkNameSpaceType::ControlGroup),
        ("net", LinkNameSpaceType::Network),
        ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
        ("mnt", LinkNameSpaceType::Mount),
    ] {
        enter_namespace(&namespaces.join(name), kind)?;
    }
    let (program, arguments) = command.split_first().context("the command is missing")?;
    let program = if program.contains('/') { PathBuf::from(program) } else { require(program)? };
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("{} cannot be started", program.display()))
}

/// Stands in for runc: a hierarchy of version 2 whose controllers are bound to version 1 can limit nothing, so only
/// the devices stay of what a container is limited to.
pub(crate) fn become_runc() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    if has("update") {
        process::exit(0);
    }
    if let Some(at) = arguments.iter().position(|argument| argument == "--bundle")
        && (has("create") || has("run"))
    {
        let path = Path::new(arguments.get(at + 1).context("--bundle without a directory")?).join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        if let Some(resources) = config.pointer_mut("/linux/resources").and_then(serde_json::Value::as_object_mut) {
            resources.retain(|name, _| name == "devices");
        }
        fs::write(&path, config.to_string())?;
    }
    Err(Command::new(require("runc")?).args(arguments).exec()).context("runc cannot be started")
}

fn mounts(node: Node) -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None)?;
    mount("none", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None)?;
    mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None)?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None)?;
    for directory in ["/run/netns", "/run/containerd", "/run/lock"] {
        fs::create_dir(directory)?;
    }
    let own = node.directory();
    for (name, over) in OWN_DIRECTORIES {
        fs::create_dir_all(over)?;
        mount_bind(own.join(name), over)?;
    }
    for setting in KUBELET_WRITES {
        let real = Path::new("/proc/sys").join(setting);
        let copy = own.join("copies").join(setting.replace('/', "_"));
        fs::write(&copy, fs::read(&real)?)?;
        mount_bind(&copy, &real)?;
    }
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    Ok(())
}

fn enter_namespace(path: &Path, kind: LinkNameSpaceType) -> Result<()> {
    let handle = File::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
    move_into_link_name_space(handle.as_fd(), Some(kind)).with_context(|| format!("{}: cannot enter", path.display()))
}

/// Checks that nothing of an earlier cluster is left, or of this one after its end.
pub(crate) fn check_clean() -> Result<()> {
    for node in NODES.map(Node) {
        let cgroup = node.cgroup()?;
        ensure!(!cgroup.exists(), "cgroup {} is left", cgroup.display());
        ensure!(!Path::new("/run/netns").join(node.namespace()).exists(), "namespace {} is left", node.namespace());
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let own = directory().display().to_string();
    ensure!(!mounts.contains(&own), "mounts of {own} are left");
    for process in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let is_left = String::from_utf8_lossy(&command).contains(&own)
            && process.file_name().to_string_lossy().parse::<u32>().is_ok_and(|number| number != process::id());
        ensure!(!is_left, "process {} of the cluster is left", process.file_name().display());
    }
    Ok(())
}
