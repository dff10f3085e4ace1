//! Writes images with GNU tar as the program, whose libraries need others, and reads them with another reader.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{Cursor, Read},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use flate2::read::GzDecoder;
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde_json::{Value, json};
use tar::Archive;
use tempfile::TempDir;

/// A directory with a program, its bill of materials and certificates.
struct Inputs(TempDir);

impl Inputs {
    fn new() -> Self {
        let inputs = Self(tempfile::tempdir().expect("a directory"));
        let path = env::var_os("PATH").expect("a search path");
        let tar = env::split_paths(&path).map(|directory| directory.join("tar")).find(|file| file.is_file());
        fs::copy(tar.expect("tar"), inputs.path("observer")).expect("copied");
        let sbom = json!({ "bomFormat": "CycloneDX", "components": [{ "name": "observer" }] });
        fs::write(inputs.path("observer.cdx.json"), sbom.to_string()).expect("written");
        fs::write(inputs.path("ca.pem"), "-----BEGIN CERTIFICATE-----\n").expect("written");
        inputs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self, output: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_image"));
        command.env("MESH_OBSERVER_BIN", self.path("observer")).env_remove("SOURCE_DATE_EPOCH");
        command.arg("--authorities").arg(self.path("ca.pem")).arg("--output").arg(self.path(output));
        command.args(more).output().expect("started")
    }

    /// Returns the bytes of a new image.
    fn bytes(&self, output: &str, more: &[&str]) -> Vec<u8> {
        let result = self.image(output, more);
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        fs::read(self.path(output)).expect("an image")
    }

    fn error(&self, more: &[&str]) -> String {
        let result = self.image("none", more);
        assert!(!result.status.success() && !self.path("none").exists());
        String::from_utf8(result.stderr).expect("text")
    }
}

/// An entry of an archive: its mode, time and bytes.
type Entry = (u32, u64, Vec<u8>);

fn unpacked(archive: impl Read) -> BTreeMap<String, Entry> {
    let mut archive = Archive::new(archive);
    let entries = archive.entries().expect("a tar archive").map(|entry| {
        let mut entry = entry.expect("an entry");
        let header = entry.header();
        assert_eq!((header.uid().expect("a user"), header.gid().expect("a group")), (0, 0));
        let (mode, time) = (header.mode().expect("a mode"), header.mtime().expect("a time"));
        let path = entry.path().expect("a path").to_str().expect("UTF-8").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("bytes");
        (path, (mode, time, bytes))
    });
    entries.collect()
}

/// An image as another reader of the format sees it.
struct Image {
    index: ImageIndex,
    config: ImageConfiguration,
    files: BTreeMap<String, Entry>,
}

impl Image {
    fn read(bytes: &[u8]) -> Self {
        let blobs = unpacked(bytes);
        let blob = |descriptor: &Descriptor| {
            let bytes = &blobs[&format!("blobs/sha256/{}", descriptor.digest().digest())].2;
            assert_eq!((descriptor.size(), descriptor.digest().digest()), (bytes.len() as u64, &*sha256sum(bytes)));
            Cursor::new(bytes.clone())
        };
        assert_eq!(blobs["oci-layout"].2, br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index = ImageIndex::from_reader(&blobs["index.json"].2[..]).expect("an index");
        let manifest = ImageManifest::from_reader(blob(&index.manifests()[0])).expect("a manifest");
        assert_eq!(*manifest.config().media_type(), MediaType::ImageConfig);
        let config = ImageConfiguration::from_reader(blob(manifest.config())).expect("a configuration");
        let [layer] = &manifest.layers()[..] else { panic!("one layer") };
        assert_eq!(*layer.media_type(), MediaType::ImageLayerGzip);
        let mut tar = Vec::new();
        GzDecoder::new(blob(layer)).read_to_end(&mut tar).expect("gzip");
        assert_eq!(*config.rootfs().diff_ids(), [format!("sha256:{}", sha256sum(&tar))]);
        Self { index, config, files: unpacked(&tar[..]) }
    }
}

/// Returns the digest by coreutils.
fn sha256sum(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), bytes).expect("written");
    let output = Command::new("sha256sum").arg(file.path()).output().expect("coreutils");
    String::from_utf8(output.stdout).expect("text").split(' ').next().expect("a digest").to_owned()
}

#[test]
fn the_same_inputs_make_the_same_bytes() {
    let inputs = Inputs::new();
    let first = inputs.bytes("first.tar", &[]);
    // Times of files and of the clock must not matter.
    fs::copy(inputs.path("observer"), inputs.path("copy")).expect("copied");
    fs::rename(inputs.path("copy"), inputs.path("observer")).expect("renamed");
    assert!(first == inputs.bytes("second.tar", &[]));
}

#[test]
fn another_reader_finds_the_program_its_libraries_and_how_to_start_it() {
    let inputs = Inputs::new();
    let image = Image::read(&inputs.bytes("image.tar", &["--name", "registry.example/observer:7"]));
    let descriptor = &image.index.manifests()[0];
    let annotations = descriptor.annotations().as_ref().expect("annotations");
    assert_eq!(annotations["io.containerd.image.name"], "registry.example/observer:7");
    assert_eq!(
        descriptor.platform().as_ref().map(|platform| platform.architecture()),
        Some(image.config.architecture())
    );

    let config = image.config.config().as_ref().expect("a configuration");
    assert_eq!(config.entrypoint().as_deref(), Some(&["/observer".to_owned()][..]));
    assert_eq!(config.user().as_deref(), Some("0:0"));
    let labels = config.labels().as_ref().expect("labels");
    assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));

    assert_eq!(image.files["observer"], (0o755, 0, fs::read(inputs.path("observer")).expect("readable")));
    assert!(
        image.files.contains_key("etc/ssl/certs/ca-certificates.crt") && image.files.contains_key("licenses/LICENSE")
    );
    // The loader itself is the oracle.
    let ldd = Command::new("ldd").arg(inputs.path("observer")).output().expect("ldd");
    let ldd = String::from_utf8(ldd.stdout).expect("text");
    let expected: BTreeSet<&str> = ldd.split_whitespace().filter(|word| word.starts_with('/')).collect();
    assert!(expected.len() >= 2, "{ldd}");
    let is_library = |path: &&str| path.contains("lib") && path.contains(".so") && !path.ends_with('/');
    let libraries: BTreeSet<String> =
        image.files.keys().map(String::as_str).filter(is_library).map(|path| format!("/{path}")).collect();
    assert_eq!(libraries.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    for (path, (mode, ..)) in &image.files {
        let parent = Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty());
        assert!(parent.is_none_or(|parent| image.files.contains_key(&format!("{}/", parent.display()))), "{path}");
        assert_eq!(mode & 0o022, 0, "{path} may be written by others");
    }
}

#[test]
fn the_bill_of_materials_lists_every_file_with_its_digest() {
    let inputs = Inputs::new();
    let image = Image::read(&inputs.bytes("image.tar", &[]));
    let sbom: Value = serde_json::from_slice(&image.files["observer.cdx.json"].2).expect("JSON");
    let components = sbom["components"].as_array().expect("a list");
    assert_eq!(components[0], json!({ "name": "observer" }), "the observer's own");
    let files = image.files.iter().filter(|(path, _)| !path.ends_with('/') && *path != "observer.cdx.json");
    let expected: Vec<_> = files.map(|(path, (.., bytes))| (format!("/{path}"), sha256sum(bytes))).collect();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let listed: Vec<_> =
        components[1..].iter().map(|it| (text(&it["name"]), text(&it["hashes"][0]["content"]))).collect();
    assert_eq!(listed, expected);
}

#[test]
fn the_time_is_what_the_environment_says() {
    let inputs = Inputs::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_image"));
    command.env("MESH_OBSERVER_BIN", inputs.path("observer")).arg("--authorities").arg(inputs.path("ca.pem"));
    command.arg("--output").arg(inputs.path("image.tar"));
    assert!(command.env("SOURCE_DATE_EPOCH", "1000000000").status().expect("started").success());
    let image = Image::read(&fs::read(inputs.path("image.tar")).expect("an image"));
    assert_eq!(image.config.created().as_deref(), Some("2001-09-09T01:46:40Z"));
    assert_eq!(image.files["observer"].1, 1_000_000_000);
    let refused = command.env("SOURCE_DATE_EPOCH", "yesterday").output().expect("started");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("expected seconds since 1970"));
}

#[test]
fn what_is_missing_is_named_with_the_remedy() {
    let inputs = Inputs::new();
    let error = inputs.error(&["--sysroot", inputs.path("empty").to_str().expect("UTF-8")]);
    assert!(error.contains("empty") && error.contains("--sysroot"), "{error}");
    let error = inputs.error(&["--sbom", inputs.path("observer").to_str().expect("UTF-8")]);
    assert!(error.contains("not a bill of materials"), "{error}");
    let error = inputs.error(&["--sbom", "/nonexistent.cdx.json"]);
    assert!(error.contains("/nonexistent.cdx.json") && error.contains("cargo xtask build"), "{error}");
    fs::write(inputs.path("ca.pem"), "no certificate").expect("written");
    assert!(inputs.error(&[]).contains("holds no PEM certificate"));
    fs::write(inputs.path("observer"), "#!/bin/sh\n").expect("written");
    assert!(inputs.error(&[]).contains("not a program that an image can be made of"));
}

#[test]
fn the_architecture_is_that_of_the_program() {
    let inputs = Inputs::new();
    let image = Image::read(&inputs.bytes("image.tar", &[]));
    let expected = if cfg!(target_arch = "x86_64") { Arch::Amd64 } else { Arch::ARM64 };
    assert_eq!(*image.config.architecture(), expected);
    // Another machine in the ELF header, without libraries for it on this one.
    let mut program = fs::read(inputs.path("observer")).expect("readable");
    let other: u16 = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    program[18..20].copy_from_slice(&other.to_le_bytes());
    fs::write(inputs.path("observer"), program).expect("written");
    let error = inputs.error(&[]);
    assert!(error.contains("is not in the usual directories") && error.contains("--sysroot"), "{error}");
}
