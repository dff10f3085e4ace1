//! The kernels of the matrix, fetched from the machine's own Debian mirror by an apt configuration of our own: the system's
//! sources, lists and packages stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    exec::{cache, exec, output, timed},
    setup,
};

/// One kernel: a release of Debian, whose newest kernel for virtual machines it is.
#[derive(Debug)]
pub(super) struct Kernel {
    /// What it is called here.
    pub(super) name: &'static str,
    suite: &'static str,
    /// Whether the observer is to work there; otherwise it is to refuse.
    pub(super) works: bool,
    /// Whether it can be told to preempt itself.
    pub(super) preempts: bool,
    /// Whether its verifier takes so long that the tests boot it but once.
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

impl Kernel {
    /// Where its image lies; fetched if it is not there yet.
    pub(super) fn image(&self) -> Result<PathBuf> {
        let folder = cache().join("kernels").join(self.name);
        let image = folder.join("vmlinuz");
        if !image.is_file() {
            timed(&format!("fetching the kernel of {} into {}", self.suite, folder.display()), || {
                self.fetch(&folder, &image)
            })?;
        }
        Ok(image)
    }

    fn fetch(&self, folder: &Path, image: &Path) -> Result<()> {
        let work = folder.join("work");
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
        // Newer packages have the image in one of their own.
        let parts = dependencies(&work, &version)?.into_iter().filter(|name| name.starts_with("linux-binary-"));
        let packages: Vec<String> = parts.chain([version]).collect();
        exec(apt("apt-get", &work).args(["-q", "-q", "download"]).args(&packages).current_dir(&work))?;
        let contents = work.join("contents");
        for entry in fs::read_dir(&work)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                exec(Command::new("dpkg-deb").arg("--extract").arg(path).arg(&contents))?;
            }
        }
        let found = find(&contents)?.with_context(|| format!("no vmlinuz in {}", packages.join(", ")))?;
        fs::rename(found, image)?;
        fs::remove_dir_all(work)?;
        Ok(())
    }
}

/// Where this machine has its Debian packages from; apt tells once it has lists.
fn mirror() -> Result<String> {
    if let Some(known) = known_mirror()? {
        return Ok(known);
    }
    setup::update_lists();
    known_mirror()?.context("apt has no source for Debian's bookworm main, from whose mirror the kernels come")
}

fn known_mirror() -> Result<Option<String>> {
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    // A release's own name, neither its updates nor its security repository.
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
        // The folder need not be readable for apt's own user.
        "APT::Sandbox::User=root".to_owned(),
    ] {
        command.args(["-o", &option]);
    }
    command
}

fn dependencies(work: &Path, package: &str) -> Result<Vec<String>> {
    let said = output(apt("apt-cache", work).args(["depends", package]))?;
    let names = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned));
    let names: Vec<String> = names.collect();
    ensure!(!names.is_empty(), "{package} is not on the mirror");
    Ok(names)
}

fn find(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            if let Some(found) = find(&path)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz")) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
