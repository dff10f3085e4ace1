//! Writes the observer's container image without a container engine: `cargo xtask image`.
//!
//! The image has no base: the observer, the shared libraries that it is linked to, certificate authorities, licences and
//! the bill of materials. The binary is the one that the tests ran. A static one would have to be another build, and
//! glibc's resolver is not made for it.

mod archive;
mod contents;
mod elf;
mod layer;
mod materials;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{archive::Description, contents::Contents, elf::Program};

/// Write the observer's image as an OCI archive, for `ctr images import`, `podman load`, `docker load` and `skopeo copy`.
///
/// The observer is that of `cargo xtask build`, or the one that `MESH_OBSERVER_BIN` names, which may be for another
/// architecture. `SOURCE_DATE_EPOCH` is the time of every file (default: 0). The same inputs make the same bytes.
#[derive(Parser)]
#[command(name = "cargo xtask image", bin_name = "cargo xtask image")]
struct Options {
    /// The observer
    #[arg(long, value_name = "FILE", env = "MESH_OBSERVER_BIN", hide = true)]
    observer: PathBuf,
    /// Its CycloneDX bill of materials [default: beside the observer, as observer.cdx.json]
    #[arg(long, value_name = "FILE")]
    sbom: Option<PathBuf>,
    /// Name of the image, with a registry as container runtimes write it out [default: docker.io/library/mesh-observer:VERSION]
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
    /// Archive to write [default: target/image/mesh-observer-VERSION-ARCHITECTURE.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Directory with the libraries of another architecture, e.g. /usr/aarch64-linux-gnu
    #[arg(long, value_name = "DIR", default_value = "/")]
    sysroot: PathBuf,
    /// Certificate authorities (PEM) that https:// receivers are checked against
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    authorities: PathBuf,
    /// Also load it into this machine's containerd, in the namespace of Kubernetes
    #[arg(long)]
    load: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let program = Program::read(&options.observer)?;
    let sbom = options.sbom.clone().unwrap_or_else(|| options.observer.with_extension("cdx.json"));
    let contents = Contents {
        observer: &options.observer,
        program: &program,
        sysroot: &options.sysroot,
        authorities: &options.authorities,
        sbom: &sbom,
        repository: repository(),
    };
    let version = env!("CARGO_PKG_VERSION");
    let name = options.name.clone().unwrap_or_else(|| format!("docker.io/library/mesh-observer:{version}"));
    let created = source_date()?;
    let files = contents.files()?;
    let layer = layer::write(&files, created)?;
    let description = Description {
        name: &name,
        version,
        architecture: program.architecture,
        created: humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(created)).to_string(),
        revision: revision(),
    };
    let archive = archive::write(&layer, &description, created)?;
    let output = options.output.clone().unwrap_or_else(|| default_output(version, program.architecture));
    write(&output, &archive)?;
    println!(
        "{name} for {}: {} files, {} bytes in {}",
        program.architecture,
        files.len(),
        archive.len(),
        output.display()
    );
    if options.load { load(&output) } else { Ok(()) }
}

/// Returns `SOURCE_DATE_EPOCH` in seconds, or 0 (<https://reproducible-builds.org/specs/source-date-epoch/>).
fn source_date() -> Result<u64> {
    // The last second of the year 9999, the latest that dates in JSON can express.
    const LATEST: u64 = 253_402_300_799;
    let Some(text) = env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else { return Ok(0) };
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| *seconds <= LATEST);
    seconds.with_context(|| format!("invalid SOURCE_DATE_EPOCH {}: expected seconds since 1970", text.display()))
}

/// Returns the commit that the repository is at, with a mark if files differ from it; `None` outside of git.
fn revision() -> Option<String> {
    let describe = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"];
    let output = Command::new("git").args(describe).current_dir(repository()).output().ok()?;
    let revision = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Some(revision).filter(|revision| output.status.success() && !revision.is_empty())
}

fn default_output(version: &str, architecture: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    repository().join(target).join(format!("image/mesh-observer-{version}-{architecture}.tar"))
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the crate lies in deploy/image")
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().context("the output is a directory: name a file")?;
    fs::create_dir_all(directory).with_context(|| format!("{}: cannot create", directory.display()))?;
    fs::write(path, bytes).with_context(|| format!("{}: cannot write", path.display()))
}

fn load(archive: &Path) -> Result<()> {
    let import = Command::new("ctr").args(["--namespace", "k8s.io", "images", "import"]).arg(archive).status();
    let status =
        import.context("cannot start ctr: install containerd, or copy the archive to a machine that has it")?;
    ensure!(status.success(), "`ctr images import` failed: {status}; is containerd running, and is this root?");
    Ok(())
}
