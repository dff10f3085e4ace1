//! Container images of one layer, written without a container engine as docker-archives.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use harness::net::finish;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// An image in the making: a layer and what runs in it.
pub(crate) struct Image {
    name: String,
    config: Value,
    layer: Builder<Vec<u8>>,
    directories: BTreeSet<PathBuf>,
}

impl Image {
    /// Starts one of this name, which is written out as containerd writes it, with an OCI image configuration.
    pub(crate) fn new(name: &str, config: Value) -> Self {
        Self { name: name.to_owned(), config, layer: Builder::new(Vec::new()), directories: BTreeSet::new() }
    }

    /// Adds a file of this machine under a path of the image.
    pub(crate) fn file(&mut self, source: &Path, target: &str) -> Result<()> {
        let context = || format!("{}: cannot read", source.display());
        let data = fs::read(source).with_context(context)?;
        let mode = fs::metadata(source).with_context(context)?.permissions().mode() & 0o777;
        self.text(target, &data, mode)
    }

    /// Adds a file of these bytes and this mode.
    pub(crate) fn text(&mut self, target: &str, data: &[u8], mode: u32) -> Result<()> {
        self.parents(target)?;
        let mut header = header(EntryType::Regular, data.len() as u64, mode);
        self.layer.append_data(&mut header, target, data).with_context(|| format!("{target}: cannot be added"))
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, target: &str, to: &str) -> Result<()> {
        self.parents(target)?;
        self.layer.append_link(&mut header(EntryType::Symlink, 0, 0o777), target, to).context("link")
    }

    /// Adds a directory that anybody may write.
    pub(crate) fn directory(&mut self, target: &str) -> Result<()> {
        self.parents(target)?;
        self.make_directory(Path::new(target), 0o777)
    }

    /// Adds the shared libraries of dynamically linked programs where the dynamic linker looks for them.
    pub(crate) fn libraries(&mut self, programs: &[&Path]) -> Result<()> {
        let mut libraries = BTreeSet::new();
        for program in programs {
            let listed = finish(Command::new("ldd").arg(program), "")?;
            let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
            libraries.extend(listed.lines().filter_map(path));
        }
        for library in libraries {
            self.file(Path::new(&library), library.trim_start_matches('/'))?;
        }
        Ok(())
    }

    /// Writes the archive.
    pub(crate) fn write(self, path: &Path) -> Result<()> {
        let layer = self.layer.into_inner().context("layer")?;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hexadecimal(&Sha256::digest(&layer)))]},
        })
        .to_string();
        let config_name = format!("{}.json", hexadecimal(&Sha256::digest(&config)));
        let manifest = json!([{"Config": config_name, "RepoTags": [self.name], "Layers": ["layer.tar"]}]).to_string();
        let mut archive = Builder::new(File::create(path).with_context(|| format!("{}", path.display()))?);
        for (name, data) in
            [(config_name.as_str(), config.as_bytes()), ("layer.tar", &layer), ("manifest.json", manifest.as_bytes())]
        {
            let mut header = header(EntryType::Regular, data.len() as u64, 0o644);
            archive.append_data(&mut header, name, data)?;
        }
        archive.finish().with_context(|| format!("{}: cannot be written", path.display()))
    }

    fn parents(&mut self, target: &str) -> Result<()> {
        let mut parents: Vec<PathBuf> = Path::new(target).ancestors().skip(1).map(Path::to_owned).collect();
        parents.reverse();
        for parent in parents.iter().filter(|parent| !parent.as_os_str().is_empty()) {
            self.make_directory(parent, 0o755)?;
        }
        Ok(())
    }

    fn make_directory(&mut self, target: &Path, mode: u32) -> Result<()> {
        if self.directories.insert(target.to_owned()) {
            self.layer.append_data(&mut header(EntryType::Directory, 0, mode), target, [].as_slice())?;
        }
        Ok(())
    }
}

/// Returns bytes as hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
