//! The gRPC programs of the end-to-end tests (`tests/peers`): grpcio from its wheel, grpc-go built from source, grpc-java
//! compiled against its jars.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{install, jars::jars, python_with_pip, remove, unpack_wheel};
use crate::exec::{cache, exec, output, root, timed, which};

/// The last one without dependencies.
const GRPCIO: &str = "1.74.0";
/// Of CPython 3.9 to 3.13, each for aarch64 and x86_64.
const GRPCIO_SHA256: [&str; 10] = [
    "655726919b75ab3c34cdad39da5c530ac6fa32696fb23119e36b64adcfca174a",
    "5f251c355167b2360537cf17bea2cf0197995e551ab9da6a0a59b3da5e8704f9",
    "e154d230dc1bbbd78ad2fdc3039fa50ad7ffcf438e4eb2fa30bce223a70c7486",
    "c3d7bd6e3929fd2ea7fbc3f562e4987229ead70c9ae5f01501a46701e08f1ad9",
    "a8f0302f9ac4e9923f98d8e243939a6fb627cd048f5cd38595c97e38020dffce",
    "c98e0b7434a7fa4e3e63f250456eaef52499fba5ae661c58cc5b5477d11e7182",
    "60d2d48b0580e70d2e1954d0d19fa3c2e60dd7cbed826aca104fff518310d1c5",
    "176d60a5168d7948539def20b2a3adcce67d72454d9ae05969a2e73f3a0feee7",
    "f6ec94f0e50eb8fa1744a731088b966427575e40c2944a980049798b127a687e",
    "e1ea6176d7dfd5b941ea01c2ec34de9531ba494d541fe2057c904e601879f249",
];
/// Any Go from 1.19 on builds the module, whose `go.sum` pins what it needs.
const GO: [(&str, &str); 1] = [("go", "golang-go")];

/// Finds or installs all three.
pub(super) fn peers() -> Result<()> {
    python()?;
    go()?;
    java()
}

/// Leaves the wheel's packages, and a link to the interpreter that they are for.
fn python() -> Result<()> {
    let folder = cache().join("grpc-python");
    let (packages, interpreter) = (folder.join("packages"), folder.join("python"));
    let version = "import grpc; print(grpc.__version__)";
    let found = output(Command::new(&interpreter).args(["-c", version]).env("PYTHONPATH", &packages));
    if found.is_ok_and(|found| found.trim() == GRPCIO) {
        return Ok(());
    }
    timed(&format!("fetching grpcio {GRPCIO} into {} (6 MB)", folder.display()), || {
        let python = python_with_pip()?;
        unpack_wheel(&python, &grpcio_requirement(), &packages)?;
        // What is on the path may be a script that picks an interpreter.
        let real = output(Command::new(python).args(["-c", "import sys; print(sys.executable)"]))?;
        match fs::remove_file(&interpreter) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => symlink(real.trim(), &interpreter),
        }
        .with_context(|| format!("{}: cannot link", interpreter.display()))
    })
}

fn grpcio_requirement() -> String {
    let hashes: String = GRPCIO_SHA256.iter().map(|hash| format!(" --hash=sha256:{hash}")).collect();
    format!("grpcio=={GRPCIO}{hashes}\n")
}

fn go() -> Result<()> {
    let folder = cache().join("grpc-go");
    let module = root().join("tests/peers/grpc-go");
    let program = folder.join("peer");
    built(&module, &program, &folder.join("sources"), || {
        install(&GO)?;
        exec(
            Command::new(which("go").context("the package golang-go has left no `go`")?)
                .args(["build", "-trimpath", "-mod=readonly", "-o"])
                .arg(&program)
                .arg(".")
                .current_dir(&module)
                .env("CGO_ENABLED", "0")
                .env("GOTOOLCHAIN", "local"),
        )
    })
}

/// Leaves the classes in a folder among the jars that they were compiled against, so that new jars come without them.
fn java() -> Result<()> {
    let folder = jars("grpc-java", "grpc-java (15 MB)")?;
    let source = root().join("tests/peers/grpc-java");
    let classes = folder.join("classes");
    built(&source, &classes.join("Peer.class"), &folder.join("sources"), || {
        remove(&classes)?;
        exec(
            Command::new("javac")
                .args(["--release", "17", "-Xlint:all,-classfile,-processing", "-Werror", "-cp"])
                .arg(folder.join("*"))
                .arg("-d")
                .arg(&classes)
                .args(files(&source)?.iter().filter(|file| file.extension().is_some_and(|end| end == "java"))),
        )
    })
}

/// Builds `product` unless it is there, made of these very sources as the stamp says.
fn built(sources: &Path, product: &Path, stamp: &Path, build: impl FnOnce() -> Result<()>) -> Result<()> {
    let texts: Vec<String> = files(sources)?
        .iter()
        .map(|file| fs::read_to_string(file).with_context(|| format!("{}", file.display())))
        .collect::<Result<_>>()?;
    let texts = texts.concat();
    if product.is_file() && fs::read_to_string(stamp).is_ok_and(|built| built == texts) {
        return Ok(());
    }
    timed(&format!("building {} of {}", product.display(), sources.display()), || {
        build()?;
        fs::write(stamp, &texts).with_context(|| format!("{}: cannot write", stamp.display()))
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{}: cannot read", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpcio_is_pinned_by_hash() {
        let requirement = grpcio_requirement();
        assert!(requirement.starts_with("grpcio==1.74.0 --hash=sha256:6557"), "{requirement}");
        assert!(GRPCIO_SHA256.iter().all(|hash| hash.len() == 64));
    }
}
