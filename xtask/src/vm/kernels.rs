//! The kernels of the matrix, fetched from the machine's own Debian mirror with a separate apt configuration: the
//! system's sources, lists and packages are not changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use walkdir::{DirEntry, WalkDir};

use crate::{
    exec::{cache, exec, output, timed},
    setup,
};

/// A kernel: the newest one for virtual machines in a release of Debian.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Name in the matrix.
    pub(super) name: &'static str,
    suite: &'static str,
    /// Whether the observer must work there; otherwise it must refuse to start.
    pub(super) works: bool,
    /// Whether it has `preempt=full`.
    pub(super) preempts: bool,
    /// Whether its verifier is so slow that the tests boot it only once.
    pub(super) is_slow: bool,
}

/// Oldest first.
pub(super) const KERNELS: [Kernel; 4] = [
    Kernel { name: "5.10", suite: "bullseye", works: false, preempts: false, is_slow: false },
    Kernel { name: "6.1", suite: "bookworm", works: true, preempts: false, is_slow: false },
    Kernel { name: "6.12", suite: "trixie", works: true, preempts: true, is_slow: false },
    Kernel { name: "newest", suite: "trixie-backports", works: true, preempts: true, is_slow: true },
];

const PACKAGE: &str = "linux-image-cloud-amd64";

/// Modules of iptables' REDIRECT in loading order; the first is built into newer kernels.
const MODULES: [&str; 9] = [
    "libcrc32c",
    "nf_defrag_ipv4",
    "nf_defrag_ipv6",
    "nf_conntrack",
    "nf_nat",
    "x_tables",
    "ip_tables",
    "iptable_nat",
    "xt_REDIRECT",
];

/// A kernel's files.
pub(super) struct Files {
    pub(super) image: PathBuf,
    /// In loading order.
    pub(super) modules: Vec<PathBuf>,
}

impl Kernel {
    /// Returns its files, which it fetches if they do not exist yet.
    pub(super) fn files(&self) -> Result<Files> {
        let directory = cache().join("kernels").join(self.name);
        let image = directory.join("vmlinuz");
        let modules = directory.join("modules");
        if !image.is_file() || !modules.is_dir() {
            timed(&format!("fetching the kernel of {} into {}", self.suite, directory.display()), || {
                self.fetch(&directory, &image, &modules)
            })?;
        }
        let modules = MODULES.iter().map(|name| modules.join(format!("{name}.ko"))).filter(|path| path.is_file());
        Ok(Files { image, modules: modules.collect() })
    }

    fn fetch(&self, directory: &Path, image: &Path, modules: &Path) -> Result<()> {
        let work = directory.join("work");
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(work.join(part)).with_context(|| format!("{}: cannot create", work.display()))?;
        }
        fs::write(work.join("sources.list"), format!("deb {} {} main\n", mirror()?, self.suite))?;
        exec(apt("apt-get", &work).args(["-q", "-q", "update"]))?;
        let version = dependencies(&work, PACKAGE)?
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
            .with_context(|| format!("{PACKAGE} of {} depends on no kernel", self.suite))?;
        // Newer releases have image and modules in separate packages.
        let is_part = |name: &String| name.starts_with("linux-binary-") || name.starts_with("linux-modules-");
        let packages: Vec<String> =
            dependencies(&work, &version)?.into_iter().filter(is_part).chain([version]).collect();
        exec(apt("apt-get", &work).args(["-q", "-q", "download"]).args(&packages).current_dir(&work))?;
        let contents = work.join("contents");
        for entry in fs::read_dir(&work)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                exec(Command::new("dpkg-deb").arg("--extract").arg(path).arg(&contents))?;
            }
        }
        let found = find(&contents, |name| name.starts_with("vmlinuz"));
        fs::rename(found.with_context(|| format!("no vmlinuz in {}", packages.join(", ")))?, image)?;
        let unpacked = work.join("modules");
        fs::create_dir_all(&unpacked)?;
        for module in MODULES {
            let names = [format!("{module}.ko"), format!("{module}.ko.xz")];
            let Some(found) = find(&contents, |name| names.iter().any(|known| known == name)) else { continue };
            if found.extension().is_some_and(|extension| extension == "xz") {
                exec(Command::new("xz").arg("--decompress").arg(&found))?;
            }
            fs::rename(found.with_file_name(&names[0]), unpacked.join(&names[0]))?;
        }
        if modules.exists() {
            fs::remove_dir_all(modules)?;
        }
        fs::rename(unpacked, modules)?;
        fs::remove_dir_all(work)?;
        Ok(())
    }
}

/// Returns the mirror of this machine's Debian packages, which apt reports once it has lists.
fn mirror() -> Result<String> {
    if let Some(known) = known_mirror()? {
        return Ok(known);
    }
    setup::update_lists();
    known_mirror()?.context("apt has no source for Debian's bookworm main, from whose mirror the kernels come")
}

fn known_mirror() -> Result<Option<String>> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    // The release itself, neither its updates nor its security repository.
    Ok(targets.lines().find_map(|line| {
        let (uri, release) = line.split_once(' ')?;
        ["bookworm main", "stable main", "oldstable main"].contains(&release).then(|| uri.to_owned())
    }))
}

fn apt(program: &str, work: &Path) -> Command {
    let mut command = Command::new(program);
    let option = |name: &str, value: &str| format!("{name}={}", work.join(value).display());
    for option in [
        option("Dir::Etc::SourceList", "sources.list"),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
        option("Dir::State::Lists", "lists"),
        option("Dir::Cache", "cache"),
        "Acquire::Languages=none".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        // apt's own user may not be able to read the directory.
        "APT::Sandbox::User=root".to_owned(),
    ] {
        command.args(["-o", &option]);
    }
    command
}

fn dependencies(work: &Path, package: &str) -> Result<Vec<String>> {
    let said = output(apt("apt-cache", work).args(["depends", package]))?;
    let names: Vec<String> =
        said.lines().filter_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned)).collect();
    ensure!(!names.is_empty(), "{package} is not on the mirror");
    Ok(names)
}

fn find(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mut files = WalkDir::new(directory).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    files.find(|file| file.file_name().to_str().is_some_and(&is_wanted)).map(DirEntry::into_path)
}
