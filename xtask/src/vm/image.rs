//! The file system a virtual machine starts with: its first process (`tests/vm`), the observer, perhaps Envoy, and the
//! libraries they are linked to, as a cpio archive of the form that kernels unpack (kernel
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::kernels::Files;
use crate::exec::{output, which};

/// First process of the machine.
pub(super) const INIT: &str = "/guest";
/// The observer in the machine.
const OBSERVER: &str = "/observer";
/// Envoy in a machine that has it, under the name that the observer looks for.
const ENVOY: &str = "/envoy";

/// Extension of iptables for REDIRECT, at its fixed path.
const REDIRECT: &str = "/usr/lib/x86_64-linux-gnu/xtables/libxt_REDIRECT.so";
const DIRECTORIES: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// iptables in the machine.
const IPTABLES: &str = "/iptables";
/// Modules in the machine: a directory per kernel, with numbered files in loading order.
const MODULES: &str = "/modules";

/// Writes the archive, with the modules of each kernel, and with Envoy if it is given.
pub(super) fn write(
    image: &Path,
    guest: &Path,
    observer: &Path,
    envoy: Option<&Path>,
    kernels: &[(&str, Files)],
) -> Result<()> {
    let iptables = which("iptables-legacy").context("iptables-legacy (package iptables) is missing")?;
    let mut files: BTreeMap<PathBuf, PathBuf> = BTreeMap::from([
        (INIT.into(), guest.to_owned()),
        (OBSERVER.into(), observer.to_owned()),
        (IPTABLES.into(), iptables.clone()),
        (REDIRECT.into(), REDIRECT.into()),
    ]);
    files.extend(envoy.map(|envoy| (ENVOY.into(), envoy.to_owned())));
    for program in [guest, observer, &iptables].into_iter().chain(envoy) {
        files.extend(libraries(program)?.into_iter().map(|library| (library.clone(), library)));
    }
    for (kernel, Files { modules, .. }) in kernels {
        let directory = Path::new(MODULES).join(kernel);
        files.extend(
            modules.iter().enumerate().map(|(number, path)| (directory.join(number.to_string()), path.clone())),
        );
    }
    let mut directories: BTreeSet<PathBuf> = DIRECTORIES.iter().map(PathBuf::from).collect();
    for file in files.keys() {
        let parents = file.ancestors().skip(1).filter_map(|directory| directory.strip_prefix("/").ok());
        directories.extend(parents.filter(|directory| !directory.as_os_str().is_empty()).map(Path::to_owned));
    }
    let mut archive = Vec::new();
    for directory in directories {
        entry(&mut archive, &directory, DIRECTORY, &[])?;
    }
    for (place, file) in files {
        let bytes = fs::read(&file).with_context(|| format!("{}: cannot read", file.display()))?;
        entry(&mut archive, place.strip_prefix("/")?, PROGRAM, &bytes)?;
    }
    entry(&mut archive, Path::new("TRAILER!!!"), 0, &[])?;
    fs::write(image, archive).with_context(|| format!("{}: cannot write", image.display()))
}

/// Returns the absolute paths of a program's libraries and of the dynamic linker.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = output(Command::new("ldd").arg(program))?;
    Ok(said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn entry(archive: &mut Vec<u8>, name: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let name = name.to_str().context("a name that is not UTF-8")?;
    let (length, name_length) = (u32::try_from(bytes.len())?, name.len() + 1);
    // Inode, mode, owner, group, links, time, length, four device numbers, length of the name, no checksum.
    write!(archive, "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{length:08x}", archive.len(), 0, 0, 1, 0)?;
    write!(archive, "{:08x}{:08x}{:08x}{:08x}{name_length:08x}{:08x}{name}\0", 0, 0, 0, 0, 0)?;
    pad(archive);
    archive.extend(bytes);
    pad(archive);
    Ok(())
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_have_110_bytes_and_everything_begins_at_a_multiple_of_four() {
        let mut archive = Vec::new();
        entry(&mut archive, Path::new("ab"), PROGRAM, b"12345").expect("small");
        assert_eq!(&archive[..14], b"07070100000000");
        assert_eq!(&archive[14..22], b"000081ed");
        assert_eq!(&archive[54..62], b"00000005");
        assert_eq!(&archive[110..116], b"ab\0\0\0\0");
        assert_eq!(&archive[116..], b"12345\0\0\0");
    }
}
