//! The files of the image.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{elf::Program, materials};

/// Where TLS libraries look for certificate authorities first.
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";
/// Without this file, glibc before 2.34 asks the name server before it reads `/etc/hosts`.
const RESOLVER: (&str, &str) = ("etc/nsswitch.conf", "hosts: files dns\n");
const LICENSES: [&str; 2] = ["LICENSE", "LICENSE-GPL-2.0"];
const EXECUTABLE: u32 = 0o755;
const READABLE: u32 = 0o644;

/// A file of the image.
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    /// Permissions.
    pub(crate) mode: u32,
}

/// The files by their paths without the first slash.
pub(crate) type Files = BTreeMap<String, File>;

/// A shared library or the loader.
#[derive(Debug)]
pub(crate) struct Library {
    /// Path in the image, without the first slash.
    pub(crate) place: String,
    /// Path on this machine.
    pub(crate) source: PathBuf,
}

/// What the image is made of.
pub(crate) struct Contents<'a> {
    pub(crate) observer: &'a Path,
    pub(crate) program: &'a Program,
    /// Directory that libraries are searched in as a loader would in `/`.
    pub(crate) sysroot: &'a Path,
    pub(crate) authorities: &'a Path,
    pub(crate) sbom: &'a Path,
    /// Directory with the licences.
    pub(crate) repository: &'a Path,
}

impl Contents<'_> {
    /// Reads every file.
    ///
    /// # Errors
    /// One is missing or unusable; the message names it and the remedy.
    pub(crate) fn files(&self) -> Result<Files> {
        let mut files = Files::from([
            ("observer".to_owned(), read(self.observer, EXECUTABLE, "`cargo xtask build` makes it")?),
            (AUTHORITIES.to_owned(), self.authorities()?),
            (RESOLVER.0.to_owned(), File { bytes: RESOLVER.1.into(), mode: READABLE }),
        ]);
        for name in LICENSES {
            files.insert(format!("licenses/{name}"), read(&self.repository.join(name), READABLE, "restore it")?);
        }
        let libraries = self.libraries()?;
        for Library { place, source } in &libraries {
            files.insert(place.clone(), read(source, EXECUTABLE, "install it")?);
        }
        let sbom = read(self.sbom, READABLE, "`cargo xtask build` writes it; name another with --sbom")?;
        let bytes = materials::with_files(&sbom.bytes, &libraries, &files)
            .with_context(|| format!("{}: not a bill of materials of CycloneDX", self.sbom.display()))?;
        files.insert("observer.cdx.json".to_owned(), File { bytes, mode: READABLE });
        Ok(files)
    }

    fn authorities(&self) -> Result<File> {
        let file = read(self.authorities, READABLE, "install ca-certificates, or name a PEM file with --authorities")?;
        let has_certificate = file.bytes.windows(27).any(|text| text == b"-----BEGIN CERTIFICATE-----");
        ensure!(
            has_certificate,
            "{}: holds no PEM certificate; name a file with --authorities",
            self.authorities.display()
        );
        Ok(file)
    }

    /// Returns the loader and every library that the program needs, directly or not, at the paths where a loader of this
    /// architecture looks for them.
    pub(crate) fn libraries(&self) -> Result<Vec<Library>> {
        let Some(loader) = &self.program.loader else { return Ok(Vec::new()) };
        let place = loader.trim_start_matches('/').to_owned();
        let source = self.sysroot.join(&place);
        ensure!(source.is_file(), "{}: missing; name with --sysroot where the libraries are", source.display());
        let mut found = vec![Library { place, source }];
        let mut wanted = self.program.needed.clone();
        while let Some(name) = wanted.pop() {
            let is_found = |library: &Library| Path::new(&library.place).file_name().is_some_and(|file| *file == *name);
            if found.iter().any(is_found) {
                continue;
            }
            let (library, program) = self.library(&name)?;
            wanted.extend(program.needed);
            found.push(library);
        }
        Ok(found)
    }

    fn library(&self, name: &str) -> Result<(Library, Program)> {
        let Program { architecture, triplet, .. } = self.program;
        // The default paths of Debian's loader, then of others.
        let directories =
            [&format!("lib/{triplet}"), &format!("usr/lib/{triplet}"), "lib", "usr/lib", "lib64", "usr/lib64"];
        for place in directories.map(|directory| format!("{directory}/{name}")) {
            let source = self.sysroot.join(&place);
            // Another architecture's library of the same name is skipped, as a loader does.
            let program = Program::read(&source).ok().filter(|library| library.architecture == *architecture);
            if let Some(program) = program {
                return Ok((Library { place, source }, program));
            }
        }
        anyhow::bail!(
            "the library {name} for {architecture} is not in the usual directories below {}; name another with --sysroot",
            self.sysroot.display()
        )
    }
}

fn read(path: &Path, mode: u32, remedy: &str) -> Result<File> {
    let bytes = fs::read(path).with_context(|| format!("{}: cannot read; {remedy}", path.display()))?;
    Ok(File { bytes, mode })
}
